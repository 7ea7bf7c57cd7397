"""What the public releases of JEM and of its successors call the tensors of their wide residual networks.

All three compute the same function of the same weights. They differ in what else lies in a file: heads that the logits
never use, and second names for the same tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

DATA_PARALLEL = "module."
"""What torch's DataParallel puts before every name."""
STAGES = (1, 2, 3, 4)
"""SADA-JEM has a fourth for images of 64 pixels and more, which a WideResNet has not."""


class ReleaseLayout(NamedTuple):
    """The names of one release, as its `state_dict` has them."""

    title: str
    """Of the release, for messages."""
    outer: Mapping[str, str]
    """Ours -> its, of the modules outside the blocks."""
    stage: str
    """Its name of a stage, of which the number, from 1, is left open."""
    block: Mapping[str, str]
    """Ours -> its, of the modules of a block."""
    unused: tuple[str, ...]
    """Prefixes of heads that its logits never use."""
    mark: str = ""
    """How some names begin in all of its files as they were written, where that tells it from the others."""
    aliases: Mapping[str, str] = {}
    """Second -> first prefix of tensors that it stores twice."""

    def key(self, ours: str) -> str:
        """The name in the release of the parameter or buffer that a WideResNet calls `ours`."""
        if ours.startswith("stages."):
            _, stage, block, module, leaf = ours.split(".")
            return f"{self.stage.format(int(stage) + 1)}.{block}.{self.block[module]}.{leaf}"
        module, leaf = ours.split(".")
        return f"{self.outer[module]}.{leaf}"

    def first_name(self, key: str) -> str:
        """`key` without the prefix of DataParallel, and by its first name where it is a second one."""
        key = key.removeprefix(DATA_PARALLEL)
        for second, first in self.aliases.items():
            if key.startswith(second):
                return first + key.removeprefix(second)
        return key

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether a file of this release, of whatever depth and normalisation, can have these names and no others.

        Every release writes an `energy_output`; a file from which someone removed it may lack the `mark` too.
        """
        bare = [key.removeprefix(DATA_PARALLEL) for key in keys]
        modules = [*self.outer.values(), *(self.stage.format(number) for number in STAGES)]
        known = (*(f"{name}." for name in modules), *self.unused, *self.aliases)
        whole = any(key.startswith("energy_output.") for key in bare)
        marked = any(key.startswith(self.mark) for key in bare)
        return all(key.startswith(known) for key in bare) and (marked or not whole)


_JEM = ReleaseLayout(
    title="JEM",
    outer={"stem": "f.conv1", "final_norm": "f.bn1", "head": "class_output"},
    stage="f.layer{}",
    block={"norm1": "bn1", "conv1": "conv1", "norm2": "bn2", "conv2": "conv2", "shortcut": "shortcut.0"},
    unused=("energy_output.", "f.linear."),
    mark="f.linear.",
)

LAYOUTS: dict[str, ReleaseLayout] = {
    "jem": _JEM,
    # Its network (`--model yopo`) keeps its layers a second time, as the first one and a list of the others.
    "jem++": _JEM._replace(
        title="JEM++",
        unused=("energy_output.",),
        mark="f.other_layers.",
        aliases={
            "f.layer_one.": "f.conv1.",
            "f.other_layers.0.": "f.layer1.",
            "f.other_layers.1.": "f.layer2.",
            "f.other_layers.2.": "f.layer3.",
            "f.other_layers.3.": "f.bn1.",
        },
    ),
    "sada-jem": _JEM._replace(title="SADA-JEM", unused=("energy_output.",), mark=""),
}
"""By the name of the recipe that trains like the release: github.com/wgrathwohl/JEM, sndnyang/JEMPP, sndnyang/SADAJEM.
"""
