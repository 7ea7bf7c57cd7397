"""A network that was made elsewhere, behind the one interface that everything here knows: images in [-1, 1] to logits.

Preprocessing is a part of the network, and differentiable, so that chains and attacks move the image itself and not
what a pipeline made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jemstone.errors import ConfigError
from jemstone.pixels import resized, with_channels


class Adapted(nn.Module):
    """`network`, which takes normalised images of its own size, as a network from images (b, c, h, w) in [-1, 1].

    Grey becomes RGB by repetition and RGB grey by luminance where `channels` asks for it; images of another `size` are
    resized bilinearly with antialiasing, which does not keep the aspect ratio; pixels in [0, 1] become
    (pixels - mean) / std. All of it has a gradient.

    Attributes:
        network: the network, untouched. Its weights are the only ones.
        channels: that it takes, 1 or 3 if images have another number.
        size: (height, width) that it takes, or one number for both; None takes images as they are.
        mean, std: of pixels in [0, 1], one per channel or one for all. The default is [-1, 1], as inside jemstone.
        output: where the logits are in what the network returns: an index of a tuple or a name. None is the tensor
            itself, or the `logits` of a Hugging Face output.
        classes: which of its outputs are the classes of the data, in the data's order; None is all, as they are.
    """

    mean: Tensor
    std: Tensor
    classes: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        *,
        channels: int = 3,
        size: int | Sequence[int] | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        output: int | str | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ConfigError(f"channels must be at least 1, got {channels}.")
        sides = (size, size) if isinstance(size, int) else size
        if sides is not None and (len(sides) != 2 or min(sides) < 1):
            raise ConfigError(f"size is (height, width) in pixels, one number for both, or None; got {size}.")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ConfigError(f"{name} needs one number, or one for each of {channels} channels; got {values}.")
        if not min(std) > 0:
            raise ConfigError(f"std divides pixels and must be above 0, got {std}.")
        if classes is not None and (not classes or len(set(classes)) < len(classes) or min(classes) < 0):
            raise ConfigError(f"classes are different outputs of the network, counted from 0; got {list(classes)}.")
        self.network = network
        self.channels = channels
        self.size = None if sides is None else (int(sides[0]), int(sides[1]))
        self.output = output
        # Buffers, to move along with the network; not saved, because they are no weights.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.last_class = max(classes or (0,))  # a number of Python's: torch.export cannot follow one from a tensor
        chosen = None if classes is None else torch.tensor(classes, dtype=torch.int64)
        self.register_buffer("classes", chosen, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (b, k) of images (b, c, h, w) in [-1, 1]."""
        if x.ndim != 4:
            raise ConfigError(f"The network takes images (b, c, h, w), and got inputs of shape {tuple(x.shape)}.")
        x = self._with_channels(x)
        x = x if self.size is None else resized(x, self.size)
        logits = self._logits(self.network(((x + 1) / 2 - self.mean) / self.std))
        return logits if self.classes is None else self._chosen(logits)

    def _with_channels(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        converted = with_channels(x, self.channels)
        if converted is None:
            raise ConfigError(
                f"The network takes images of {self.channels} channels and the data has {x.shape[1]}. Only grey (1) "
                "and RGB (3) are converted into each other."
            )
        return converted

    def _logits(self, found: object) -> Tensor:
        if self.output is not None and not isinstance(found, Tensor):
            try:
                found = found[self.output]  # type: ignore[index]
            except (LookupError, TypeError) as error:
                raise ConfigError(f"The network returns nothing under output={self.output!r}: {error!r}.") from error
        elif not isinstance(found, Tensor) and isinstance(getattr(found, "logits", None), Tensor):
            found = found.logits  # type: ignore[attr-defined]
        if not isinstance(found, Tensor):
            kind, parts = type(found).__name__, ""
            if isinstance(found, tuple | list):
                shapes = [str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in found]
                parts = f" of {', '.join(shapes)}"
            raise ConfigError(
                f"The network returns a {kind}{parts} and not logits. Say where they are, for example "
                "Adapted(network, output=1) for the second of a tuple, or output='NAME'."
            )
        return found

    def _chosen(self, logits: Float[Tensor, "b n"]) -> Float[Tensor, "b k"]:
        assert self.classes is not None, "asked for where classes were chosen"
        if not self.last_class < logits.shape[1]:
            raise ConfigError(
                f"classes name the output {self.last_class}, and the network has {logits.shape[1]}, counted from 0."
            )
        return logits.index_select(1, self.classes)
