"""AutoAttack (Croce and Hein, ICML 2020) and Square (Andriushchenko et al., ECCV 2020), through pyautoattack.

The library works on images in [0, 1]; `in_pixels` is the only place where a model is shown to it. Both functions
return points in the model's box, to be judged by `attacks.broken`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jemstone.energy import EnergyClassifier
from jemstone.errors import MissingExtra
from jemstone.evaluation.attacks import Norm
from jemstone.rng import generator, seeded

STANDARD = ["apgd-ce", "apgd-t", "fab-t", "square"]
"""The ensemble of the paper, in the order of the library."""
SPELLING = {"linf": "Linf", "l2": "L2"}
TARGETS = 9
"""Classes that a targeted attack of the standard version aims at; all others where there are fewer."""


def library() -> ModuleType:
    """pyautoattack; MissingExtra where it is not installed."""
    try:
        import pyautoattack
    except ImportError as error:
        raise MissingExtra("pyautoattack", "attacks") from error
    module: ModuleType = pyautoattack
    return module


def autoattack(
    model: EnergyClassifier,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    *,
    norm: Norm,
    eps: float,
    classes: int,
    box: tuple[float, float],
    seed: int,
    batch_size: int,
) -> Float[Tensor, "n c h w"]:
    """What the standard version finds within `eps` of [0, 1] pixels; the image itself where it finds nothing.

    Deterministic given seed and batch size. Global random state, logging and tracing are left as they were. Raises
    MissingExtra without pyautoattack.
    """
    device, made = model.device, library().AutoAttack
    with _alone(device):
        attack = made(in_pixels(model, box), norm=SPELLING[norm], eps=eps, seed=_seed(seed, norm, eps), device=device)
        attack.attacks_to_run = members(classes, norm, (int(x.shape[2]), int(x.shape[3])))
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(TARGETS, classes - 1)
        moved, _ = attack.run_standard_evaluation(_to_pixels(x, box), y.cpu(), batch_size=batch_size)
    return _from_pixels(moved, box)


def members(classes: int, norm: Norm, size: tuple[int, int]) -> list[str]:
    """The attacks of the ensemble that can be run: all four of the standard version, where nothing stands against it.

    The targeted DLR loss divides by a difference of the largest four logits, the untargeted one of the largest three.
    Square in L2 starts from tiles, h // 5 pixels wide, that the library lays beyond the border of some small sizes.
    """
    dlr = ["apgd-t"] if classes > 3 else ["apgd-dlr"] if classes == 3 else []
    tile = size[0] // 5
    first = (size[0] - 5 * tile) // 2
    tiled = tile == 1 or (tile > 1 and all(first + tile * (side // tile) <= side for side in size))
    return ["apgd-ce", *dlr, "fab-t", *(["square"] if norm == "linf" or tiled else [])]


def square(
    model: EnergyClassifier,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    *,
    eps: float,
    queries: int,
    box: tuple[float, float],
    seed: int,
    batch_size: int,
) -> Float[Tensor, "n c h w"]:
    """What Square finds in L-infinity with `queries` forward passes per image, its schedule fitted to that budget."""
    device = model.device
    library()
    from pyautoattack.square import SquareAttack

    parts = []
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        attack = SquareAttack(
            in_pixels(model, box), norm="Linf", eps=eps, n_queries=queries, seed=_seed(seed, "square", eps, start),
            device=device, resc_schedule=True,
        )  # fmt: skip
        with _alone(device):
            parts.append(attack.perturb(_to_pixels(x[part], box).to(device), y[part].to(device)).detach().cpu())
    return _from_pixels(torch.cat(parts), box)


def in_pixels(model: EnergyClassifier, box: tuple[float, float]) -> Callable[[Tensor], Tensor]:
    """The model as a function of images in [0, 1], (b, c, h, w) -> logits (b, k)."""

    def logits(pixels: Tensor) -> Tensor:
        found: Tensor = model(_from_pixels(pixels, box))
        # A model that cuts the path from its input has gradient 0; without the last term it would be an error.
        return found + 0 * pixels.flatten(1).sum(dim=1, keepdim=True)

    return logits


def _to_pixels(x: Tensor, box: tuple[float, float]) -> Tensor:
    return ((x - box[0]) / (box[1] - box[0])).contiguous()  # the library takes views


def _from_pixels(pixels: Tensor, box: tuple[float, float]) -> Tensor:
    return box[0] + (box[1] - box[0]) * pixels


def _seed(seed: int, *position: str | int | float) -> int:
    rng = generator(seed, "autoattack", *(str(part) for part in position))
    return int(torch.randint(2**31, (), generator=rng))


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """The library seeds torch's global streams, logs warnings that print, and ends any tracing: all given back."""
    logger, tracer = logging.getLogger("auto-attack"), sys.gettrace()
    disabled = logger.disabled
    logger.disabled = True
    try:
        # It seeds every cuda device; `seeded` gives back the model's own, of whatever type.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), seeded(0, "autoattack", device=device):
            yield
    finally:
        logger.disabled = disabled
        sys.settrace(tracer)
