"""What samples and data are compared in: functions from images to feature vectors.

FID, KID and their kin are numbers about features, and compare only where the extractor is the same: its name travels
with every number, and holds a digest of what it was made from.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from jemstone.data.dataset import Dataset, to_box
from jemstone.errors import ConfigError, DataError, MissingExtra

COMPONENTS = 64
"""Principal components that `pixels` keeps, at most."""
FITTED_ON = 10_000
"""Training images that `pixels` is fitted on, at most."""
INCEPTION_SIZE = 299
CPU = torch.device("cpu")
CHOICES = "pixels, inception=FILE (TorchScript), torch-fidelity"


class Features(NamedTuple):
    """One batch of features: `pool` (b, d), and class `logits` (b, k) where the extractor is a classifier."""

    pool: Float[Tensor, "b d"]
    logits: Float[Tensor, "b k"] | None = None


@dataclass(frozen=True)
class Extractor:
    """`function` maps images (b, c, h, w) in [0, 1], or vectors (b, d) as they are, to Features, on `device`.

    `name` says which features these are and changes whenever they do: statistics are cached under it.
    """

    name: str
    function: Callable[[Tensor], Features]
    batch_size: int = 256
    device: torch.device = CPU

    @classmethod
    def of(cls, module: Callable[[Tensor], Tensor], name: str, *, batch_size: int = 256) -> Extractor:
        """Any function or module from images (b, c, h, w) in [0, 1] to features (b, d).

        A module runs where its parameters are and in the mode it is in (put it in evaluation mode); a digest of its
        parameters and buffers joins the name. For a plain function give a new name when it changes.
        """
        device = CPU
        if isinstance(module, nn.Module):
            device = next((parameter.device for parameter in module.parameters()), CPU)
            name = f"{name}-{_state_digest(module)}"
        return cls(name, lambda images: Features(module(images)), batch_size, device)


def make_extractor(spec: str, data: Dataset, device: torch.device) -> Extractor:
    """The extractor that `spec` asks for, on `device`: one of `CHOICES`.

    `pixels` needs nothing but the data; its distances compare models on one data set and are not the FID of the
    literature. That one needs the Inception-v3 network of Heusel et al. (2017): as a TorchScript file, or by way of
    torch-fidelity, which has logits too, downloads its weights, and wants images of 1 or 3 channels as well.

    Raises ConfigError for another spec, MissingExtra without torch-fidelity, DataError for an unusable file or shape.
    """
    kind, file = parse_spec(spec)
    if kind == "pixels":
        return _pixels(data, device)
    if len(data.input_shape) != 3 or data.input_shape[0] not in (1, 3):
        raise DataError(
            f"Inception features need images of 1 or 3 channels; inputs of {data.name!r} have shape "
            f"{data.input_shape}. Use the extractor 'pixels'."
        )
    return _inception(Path(file), device) if kind == "inception" else _torch_fidelity(device)


def parse_spec(spec: str) -> tuple[str, str]:
    """(kind, file) of a spec; the file is "" where none is needed. Raises ConfigError that lists the choices."""
    kind, _, file = spec.partition("=")
    if spec in ("pixels", "torch-fidelity") or (kind == "inception" and file):
        return kind, file
    raise ConfigError(f"Unknown feature extractor {spec!r}. Choose one of: {CHOICES}; from Python, Extractor.of(...).")


def file_digest(spec: str) -> str:
    """A digest of the file that `spec` names; "" where it names none, or one that is not there."""
    file = Path(parse_spec(spec)[1] or ".")
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""


def unit_images(inputs: Tensor) -> Float[Tensor, "b ..."]:
    """Stored images, uint8 or in the box, as [0, 1], what lies outside clamped. Vectors stay as they are."""
    x = to_box(inputs)
    return ((x + 1) / 2).clamp(0, 1) if x.ndim == 4 else x


def legacy_bilinear(images: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c out out"]:
    """Bilinear resize as TensorFlow 1 did it, in which FID is defined: output pixel i reads from i * in / out.

    No half-pixel centres and no aligned corners: the picture shifts to the top left, and its last rows are constant.
    """
    height, width = images.shape[-2:]
    left, right, across = _taps(width, size, images.device)
    top, bottom, down = _taps(height, size, images.device)
    wide = images[..., left] + (images[..., right] - images[..., left]) * across
    return wide[..., top, :] + (wide[..., bottom, :] - wide[..., top, :]) * down[:, None]


def _taps(source: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each output position the two source positions that it reads, and the weight of the second."""
    position = torch.arange(size, dtype=torch.float64) * source / size
    low = position.floor().long()
    high = (low + 1).clamp(max=source - 1)
    return low.to(device), high.to(device), (position - low).float().to(device)


def _pixels(data: Dataset, device: torch.device) -> Extractor:
    """Flattened inputs, centred, projected on the leading principal components of the training split; scale kept."""
    from sklearn.decomposition import PCA

    flat = unit_images(data.train.spread(FITTED_ON).inputs).flatten(1).double().cpu().numpy()
    if len(flat) < 2:
        raise DataError(f"The extractor 'pixels' needs two training inputs or more, {data.name!r} has {len(flat)}.")
    kept = min(COMPONENTS, *flat.shape)
    fit = PCA(kept, random_state=0).fit(flat)  # large inputs get the randomised solver: seeded, no global state
    axes, mean = fit.components_.T.astype(np.float32), fit.mean_.astype(np.float32)
    digest = hashlib.sha256(axes.tobytes() + mean.tobytes()).hexdigest()[:16]
    axes, mean = torch.from_numpy(axes).to(device), torch.from_numpy(mean).to(device)
    return Extractor(
        f"pixels-{kept}-{digest}", lambda images: Features((images.flatten(1) - mean) @ axes), 1024, device
    )


def _inception(file: Path, device: torch.device) -> Extractor:
    """The 2048 pool features of a TorchScript Inception-v3 that resizes nothing, fed as the TensorFlow graph was."""
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        network = torch.jit.load(str(file), map_location=device).eval()  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"Cannot load {file} as a TorchScript network: {error}. The extractor inception=FILE needs a file that "
            "torch.jit.save wrote."
        ) from error

    def function(images: Tensor) -> Features:
        x = legacy_bilinear(_colour_bytes(images), INCEPTION_SIZE)
        return Features(network((x - 128) / 128).flatten(1))

    return Extractor(f"inception-{digest}", function, 64, device)


def _torch_fidelity(device: torch.device) -> Extractor:
    """torch-fidelity's port of the same network: pool features, and logits without bias as the Inception score uses."""
    try:
        library = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit the torch beside it
        raise MissingExtra("torch-fidelity", "fid") from error
    wanted = ["2048", "logits_unbiased"]
    try:
        network: Any = library.FeatureExtractorInceptionV3("inception-v3-compat", wanted)
    except OSError as error:
        raise DataError(
            f"torch-fidelity could not fetch its Inception weights ({error}). Run once with a network connection, or "
            "use inception=FILE."
        ) from error
    network = network.to(device).eval()

    def function(images: Tensor) -> Features:
        pool, logits = network(_colour_bytes(images).to(torch.uint8))
        return Features(pool, logits)

    return Extractor(f"torch-fidelity-{_state_digest(network)}", function, 64, device)


def _colour_bytes(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
    """Whole numbers 0 to 255 in three channels: what an image file would hold, for data and samples alike."""
    return (images * 255).round().expand(-1, 3, -1, -1)


def _state_digest(module: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            sha.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
