"""An audit as a picture: the most suspicious images of each kind, with what is doubted about them."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Num
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from jemstone.data import UNLABELLED, to_uint8
from jemstone.deployment.audit import Audit
from jemstone.errors import ConfigError

COLUMNS = 8
WIDTH = 104
"""Pixels of a cell; two images share one where a pair is shown."""
CAPTION, TITLE, GAP = 34, 34, 8
MEANINGS = {
    "mislabelled": "another class is more likely than the given one: given > suggested",
    "outlier": "the model's density is low here: E(x)",
    "near-duplicate": "left the image, right its nearest other one: distance",
}


def contact_sheet(
    audit: Audit, inputs: Num[Tensor, "n c h w"], class_names: tuple[str, ...], *, top: int = 24
) -> Image.Image:
    """The `top` most suspicious images for each reason, flagged ones with a red frame, and how many are flagged."""
    if top < 1:
        raise ConfigError(f"top counts images on the sheet, and is {top}: use at least 1.")
    top = min(top, len(inputs))
    rows = math.ceil(top / COLUMNS)
    section = TITLE + rows * (WIDTH + CAPTION + GAP)
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + GAP) + GAP, len(MEANINGS) * section + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(size=11), ImageFont.load_default(size=14)
    reasons, orders = audit.reasons(), audit.orders()
    for number, (name, meaning) in enumerate(MEANINGS.items()):
        above = number * section
        flagged = reasons[name]
        title = f"{name}: {int(flagged.sum())} of {len(flagged)} flagged.  {meaning}"
        draw.text((GAP, above + 10), title, fill="black", font=large)
        for place, row in enumerate(orders[name][:top].tolist()):
            left = GAP + place % COLUMNS * (WIDTH + GAP)
            high = above + TITLE + place // COLUMNS * (WIDTH + CAPTION + GAP)
            shown = [row, int(audit.neighbour[row])] if name == "near-duplicate" else [row]
            for step, picture in enumerate(_pictures(inputs[shown], WIDTH // len(shown))):
                sheet.paste(picture, (left + step * WIDTH // len(shown), high))
            if flagged[row]:
                draw.rectangle((left - 2, high - 2, left + WIDTH + 1, high + WIDTH + 1), outline="#c0392b", width=2)
            for line, text in enumerate(_caption(audit, name, row, class_names)):
                draw.text((left, high + WIDTH + 3 + 14 * line), _fitted(text, small), fill="#333333", font=small)
    return sheet


def _caption(audit: Audit, name: str, row: int, class_names: tuple[str, ...]) -> tuple[str, str]:
    """What stands below an image: which it is, and why it is here."""
    given, suggested = int(audit.given[row]), class_names[int(audit.suggested[row])]
    label = "no label" if given == UNLABELLED else class_names[given]
    if name == "mislabelled":
        return f"#{row}  {audit.margin[row]:+.1f} nats", f"{label} > {suggested}"
    if name == "outlier":
        return f"#{row}  E = {audit.energy[row]:.1f}", label
    other = int(audit.neighbour[row])
    theirs = "no label" if audit.given[other] == UNLABELLED else class_names[int(audit.given[other])]
    return f"#{row}  #{other}", f"{audit.distance[row]:.2f}  {label} / {theirs}"


def _pictures(images: Tensor, width: int) -> list[Image.Image]:
    """Images in `width` pixels; small ones enlarged without smoothing."""
    shown = to_uint8(images[:, : 3 if images.shape[1] >= 3 else 1])
    cells = [Image.fromarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image) for image in shown]
    kind = Image.Resampling.NEAREST if max(images.shape[2:]) <= width else Image.Resampling.LANCZOS
    share = width / max(images.shape[2:])
    size = (max(1, round(images.shape[3] * share)), max(1, round(images.shape[2] * share)))
    return [cell.resize(size, kind) for cell in cells]


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """`text`, cut where it is wider than a cell."""
    if font.getlength(text) <= WIDTH:
        return text
    while text and font.getlength(text + "...") > WIDTH:
        text = text[:-1]
    return text + "..."
