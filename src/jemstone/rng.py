"""Randomness as an argument, derived from position.

A stream is named by a seed and a position such as ("chains", step, rank). The same position gives the same
numbers whatever happened before, which is what makes a resumed run bitwise the run that was never stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, *position: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random stream at `position` under `seed`, on `device`.

    Streams at different positions are independent for all practical purposes: the 64-bit state seed is a
    SHA-256 digest of the seed and the position.
    """
    rng = torch.Generator(device=device)
    rng.manual_seed(_state(seed, position))
    return rng


@contextmanager
def seeded(seed: int, *position: str | int, device: torch.device | str = "cpu") -> Iterator[None]:
    """torch's global stream set to `position`, and given back as it was: for code that takes no generator."""
    device = torch.device(device)
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.default_generator.manual_seed(_state(seed, position))
        if devices:
            torch.get_device_module(device).manual_seed(_state(seed, position))
        yield


def _state(seed: int, position: tuple[str | int, ...]) -> int:
    digest = hashlib.sha256(repr((int(seed), *position)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
