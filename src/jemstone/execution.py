"""How a network is computed: the same mathematics in another precision, memory layout or program.

What may differ is rounding. Chains, buffers and weights stay in float32; bfloat16 holds activations and gradients only.
"""

from __future__ import annotations

import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True)
class Execution:
    """How the forward and backward passes of a network run.

    Attributes:
        precision: `32-true`, or `bf16-mixed`: convolutions and matrix products in bfloat16, weights in float32.
        channels_last: images as (b, h, w, c) in memory, under the same shape (b, c, h, w).
        compiled: the batch size of chains that run on a program which torch.compile makes of the energy gradient; other
            batches run eagerly. 0 is off.
        merged: labelled images, real images and negatives pass through the network as one batch. Only for networks
            that treat each input alone.
    """

    precision: Precision = "32-true"
    channels_last: bool = False
    compiled: int = 0
    merged: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context that forward passes run in."""
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext()

    def place(self, x: Tensor) -> Tensor:
        """`x` (b, ...) in the layout that the network is fed in: the same numbers."""
        if self.channels_last and x.ndim == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def arrange(self, model: nn.Module) -> None:
        """Put the weights of `model` into the layout that inputs are fed in: the same numbers."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __str__(self) -> str:
        parts = ["bfloat16" if self.precision == "bf16-mixed" else "float32"]
        parts += ["channels last"] if self.channels_last else []
        parts += ["compiled chains"] if self.compiled else []
        parts += ["one forward pass"] if self.merged else []
        return ", ".join(parts)


PLAIN = Execution()
"""Float32, eager, as the network comes."""


def keep_freed_memory() -> None:
    """Let the C library keep up to 256 MiB that this process has freed, and use them again; no result changes.

    By default glibc hands large blocks back to the system as soon as they are freed, and so every batch has its
    activations mapped anew, page by page, which on a CPU can take as long as computing them. It concerns the whole
    process: meant for commands, which have one of their own. Nothing happens where the library is another one.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 * 2**20)  # the largest that it takes
        libc.mallopt(trim_threshold, 256 * 2**20)
