"""Randomness as an argument, derived from position.

A stream is named by a seed and a position such as ("chains", step, rank). The same position gives the same
numbers whatever happened before, which is what makes a resumed run bitwise the run that was never stopped.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *position: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random stream at `position` under `seed`, on `device`.

    Streams at different positions are independent for all practical purposes: the 64-bit state seed is a
    SHA-256 digest of the seed and the position.
    """
    digest = hashlib.sha256(repr((int(seed), *position)).encode()).digest()
    rng = torch.Generator(device=device)
    rng.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return rng
