"""torchvision beside a torch that it was not built for."""

from __future__ import annotations

import importlib.util

import torch

_kept: list[torch.library.Library] = []
"""Definitions last as long as the object that made them."""


def make_importable() -> None:
    """Let `import torchvision` succeed where its compiled operators do not load, as a CUDA build's beside a CPU torch.

    Its Python part registers meta kernels for two operators when it is imported, and dies where the compiled part has
    not defined them; timm, transformers' image models and torchmetrics import it and die with it. Here the two get
    their schemas, without an implementation: networks, which use neither, then work; calling one fails as before. Does
    nothing where torchvision is missing or in order.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _kept.append(library)
