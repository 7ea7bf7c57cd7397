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

COLUMNS, WIDTH = 8, 104
"""Cells in a row, and the pixels of one; a pair of images takes two cells."""
LINE, TITLE, GAP = 14, 34, 8
MEANINGS = {
    "mislabelled": "another class is more likely than the given one: by how many nats",
    "outlier": "the model's density is low here: E(x) in nats",
    "near-duplicate": "an image, its nearest other one, and their distance",
}


def contact_sheet(
    audit: Audit, inputs: Num[Tensor, "n c h w"], class_names: tuple[str, ...], *, top: int = 24
) -> Image.Image:
    """The `top` most suspicious images for each reason, flagged ones in a red frame, and how many are flagged.

    Of near-duplicates there are `top` / 2 pairs, each once.
    """
    if top < 1:
        raise ConfigError(f"top counts images on the sheet, and is {top}: use at least 1.")
    shown = {name: _shown(audit, name, order.tolist(), top) for name, order in audit.orders().items()}
    high = WIDTH + 3 * LINE + GAP
    heights = {name: TITLE + high * math.ceil(sum(map(len, groups)) / COLUMNS) for name, groups in shown.items()}
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + GAP) + GAP, sum(heights.values()) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(size=11), ImageFont.load_default(size=14)
    top_edge = 0
    for name, flagged in audit.reasons().items():
        title = f"{name}: {int(flagged.sum())} of {len(flagged)} flagged.  {MEANINGS[name]}"
        draw.text((GAP, top_edge + 10), title, fill="black", font=large)
        cell = 0
        for group in shown[name]:
            across, down = GAP + cell % COLUMNS * (WIDTH + GAP), top_edge + TITLE + cell // COLUMNS * high
            cell += len(group)
            for place, picture in enumerate(_pictures(inputs[group])):
                sheet.paste(picture, (across + place * WIDTH, down))
            width = len(group) * WIDTH
            if flagged[group[0]]:
                draw.rectangle((across - 2, down - 2, across + width + 1, down + WIDTH + 1), outline="#c0392b", width=2)
            for line, text in enumerate(_caption(audit, name, group, class_names)):
                fitted = _fitted(text, small, width)
                draw.text((across, down + WIDTH + 3 + LINE * line), fitted, fill="#333333", font=small)
        top_edge += heights[name]
    return sheet


def _shown(audit: Audit, name: str, order: list[int], top: int) -> list[list[int]]:
    """The rows to show, in groups: single images, or pairs."""
    if name != "near-duplicate":
        return [[row] for row in order[:top]]
    pairs: dict[frozenset[int], list[int]] = {}
    for row in order:
        pair = [row, int(audit.neighbour[row])]
        pairs.setdefault(frozenset(pair), pair)
    return list(pairs.values())[: math.ceil(top / 2)]


def _caption(audit: Audit, name: str, group: list[int], class_names: tuple[str, ...]) -> list[str]:
    """What stands below: which image it is, why it is here, and its labels."""
    row, given = group[0], [int(audit.given[row]) for row in group]
    labels = " / ".join("no label" if label == UNLABELLED else class_names[label] for label in given)
    if name == "mislabelled":
        return [
            f"#{row}  {audit.margin[row]:+.1f}",
            f"given {labels}",
            f"model {class_names[int(audit.suggested[row])]}",
        ]
    if name == "outlier":
        return [f"#{row}  E = {audit.energy[row]:.1f}", f"given {labels}"]
    return [" / ".join(f"#{row}" for row in group) + f"  at {audit.distance[row]:.2f}", f"given {labels}"]


def _pictures(images: Tensor) -> list[Image.Image]:
    """Images in WIDTH pixels; small ones enlarged without smoothing."""
    shown = to_uint8(images[:, : 3 if images.shape[1] >= 3 else 1])
    cells = [Image.fromarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image) for image in shown]
    kind = Image.Resampling.NEAREST if max(images.shape[2:]) <= WIDTH else Image.Resampling.LANCZOS
    share = WIDTH / max(images.shape[2:])
    size = (max(1, round(images.shape[3] * share)), max(1, round(images.shape[2] * share)))
    return [cell.resize(size, kind) for cell in cells]


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text`, cut where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
