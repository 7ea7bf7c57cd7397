"""Networks of timm and of transformers by name, and what it takes to build one again without its source.

`timm:NAME`            a model of timm, by its name or as `timm:local-dir:FOLDER`
`hf:FOLDER_OR_ID`      an image classifier of transformers: a folder with a config.json, or a name on the hub
`py:FILE.py:FUNCTION`  what a function of yours returns; it is called without arguments, or with the number of classes
                       if it asks for one; it takes inputs in jemstone's units, see `Adapted`

No code comes along with a name: transformers' `trust_remote_code` is off. The file of a `py:` name is executed.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from jemstone.errors import ConfigError, MissingExtra
from jemstone.networks.adapters import Adapted
from jemstone.networks.torchvision_ops import make_importable

FOREIGN: dict[str, str] = {
    "timm:NAME": "model of timm, for example timm:resnet18, with fresh weights",
    "hf:FOLDER_OR_ID": "image classifier of transformers as its config.json describes it, with fresh weights",
    "py:FILE.py:FUNCTION": "what a function of your own returns",
}
"""The names that `build_foreign` understands."""


@dataclass(frozen=True)
class Definition:
    """All that a network of another library is made of but its weights: plain values, kept in the run.

    Attributes:
        library: `timm` or `transformers`.
        arguments: of `timm.create_model`, or the fields of the transformers configuration.
        channels, size, mean, std, classes: as `Adapted` has them.
    """

    library: str
    arguments: Mapping[str, Any]
    channels: int
    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The network's name in a configuration, beside this definition."""
        if self.library == "timm":
            return f"timm:{self.arguments['model_name']}"
        return f"hf:{self.arguments['model_type']}"

    def to_text(self) -> str:
        """As JSON; `from_text` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Definition:
        """Read what `to_text` wrote."""
        try:
            values = json.loads(text)
            lists = {name: None if values[name] is None else tuple(values[name]) for name in ("size", "classes")}
            rest = {"mean": tuple(values["mean"]), "std": tuple(values["std"])}
            return cls(**{**values, **lists, **rest})
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"network.definition is none that jemstone wrote ({error}). Leave it empty.") from error

    def adapted(self, network: nn.Module) -> Adapted:
        """`network`, which this is the definition of, taking images in [-1, 1]."""
        settings = {name: getattr(self, name) for name in ("channels", "size", "mean", "std", "classes")}
        return Adapted(network, **settings)

    def build(self) -> Adapted:
        """The network with fresh weights, from torch's global generator; nothing is fetched or looked up."""
        if self.library == "timm":
            name, rest = self.arguments["model_name"], dict(self.arguments)
            del rest["model_name"]
            # A definition may come from the hub: create_model would also read files that it names.
            if not re.fullmatch(r"[\w.]+", name) or rest.keys() - {"num_classes"}:
                raise ConfigError("network.definition asks timm for more than a model of its own and its classes.")
            return self.adapted(_timm().create_model(name, pretrained=False, **rest))
        if self.library != "transformers":
            raise ConfigError(f"network.definition is of the library {self.library!r}; known are timm, transformers.")
        transformers = _transformers()
        fields = _without_code(dict(self.arguments))
        config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
        classifier = transformers.AutoModelForImageClassification
        return self.adapted(classifier.from_config(config, trust_remote_code=False).float())


def is_foreign(name: str) -> bool:
    """Whether a network's name is one of those of this module."""
    return name.startswith(("timm:", "hf:", "py:"))


def absolute_network(name: str) -> str:
    """`name` as it reads from any folder."""
    if name.startswith("py:"):
        file, function = _python_parts(name)
        return f"py:{file.expanduser().resolve()}:{function}"
    return name


def fetch(name: str, num_classes: int, *, trained: bool) -> nn.Module:
    """The network called `name` as its library makes it: untrained with `num_classes` outputs, or `trained` as it is.

    Raises ConfigError where there is none of that name, or no weights can be had; MissingExtra without the library.
    """
    kind, _, rest = name.partition(":")
    if kind == "py":
        return _from_python(name, num_classes)
    try:
        if kind == "timm":
            outputs = {} if trained else {"num_classes": num_classes}
            module: nn.Module = _timm().create_model(rest, pretrained=trained, **outputs)
            return module
        transformers = _transformers()
        classifier = transformers.AutoModelForImageClassification
        if trained:
            module = classifier.from_pretrained(rest, trust_remote_code=False)
        else:
            config = transformers.AutoConfig.from_pretrained(rest, trust_remote_code=False)
            config.num_labels = num_classes
            module = classifier.from_config(config, trust_remote_code=False)
        return module.float()
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        weights = " with its weights" if trained else ""
        remedy = " Without the internet: a folder that holds both, or --weights FILE." if trained else ""
        raise ConfigError(f"Network {name!r} cannot be made{weights}: {error}{remedy}") from error


def define(
    module: nn.Module,
    *,
    trained: bool,
    size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[int] | None = None,
) -> Definition | None:
    """What `module` is, where it is an object of timm or transformers; None for any other.

    How its images are prepared is looked up: in timm's pretrained_cfg, in the preprocessor_config.json beside a
    transformers model; what is given here takes the place of what is found. Sizes: a trained network takes images of
    the size that it was trained on; an untrained one takes them as they are, unless its architecture has only one.
    Raises ConfigError for a trained network whose normalisation is nowhere to be found.
    """
    library = _library_of(module)
    if library is None:
        return None
    found = _define_timm(module, trained) if library == "timm" else _define_transformers(module, trained, mean and std)
    given = {"size": size, "mean": mean, "std": std, "classes": classes}
    changes: dict[str, Any] = {name: tuple(value) for name, value in given.items() if value is not None}
    return replace(found, **changes)


def definition_of(name: str, num_classes: int) -> str:
    """The definition of an untrained network by its name, as text; empty for a network that has none."""
    if not name.startswith(("timm:", "hf:")):
        return ""
    definition = define(fetch(name, num_classes, trained=False), trained=False)
    assert definition is not None, "what the two libraries make is theirs"
    return definition.to_text()


def build_foreign(name: str, num_classes: int, definition: str = "") -> nn.Module:
    """The network called `name` with fresh weights; with a `definition`, from that alone."""
    if name.startswith("py:"):
        return _from_python(name, num_classes)
    return Definition.from_text(definition or definition_of(name, num_classes)).build()


def _without_code(fields: Any) -> Any:
    """The fields of a transformers configuration but for those that name code to fetch: modules and kernels."""
    if not isinstance(fields, dict):
        return fields
    return {
        key: _without_code(value)
        for key, value in fields.items()
        if key != "auto_map" and not key.strip("_").endswith("_implementation")
    }


def _library_of(module: nn.Module) -> str | None:
    """By the ancestors' names: neither library is imported for a module that is not of it."""
    if any(kind.__module__.startswith("transformers.") for kind in type(module).__mro__):
        return "transformers"
    return "timm" if isinstance(getattr(module, "pretrained_cfg", None), Mapping) else None


def _define_timm(module: Any, trained: bool) -> Definition:
    found = module.pretrained_cfg
    channels, *size = found.get("input_size", (3, 224, 224))
    return Definition(
        "timm",
        {"model_name": found["architecture"], "num_classes": module.num_classes},
        channels=channels,
        size=(size[0], size[1]) if trained or found.get("fixed_input_size", False) else None,
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )


def _define_transformers(module: Any, trained: bool, moments: object) -> Definition:
    from transformers.image_processing_base import ImageProcessingMixin

    config = module.config
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(config.name_or_path)
    except (OSError, ValueError, TypeError):  # a model made in Python has no folder
        processor = {}
    if trained and not processor and not moments:
        raise ConfigError(
            f"There is no preprocessor_config.json at {config.name_or_path or 'the place this model came from'!r}, so "
            "nothing tells how its images are normalised. Put it there, or give mean and std of pixels in [0, 1]."
        )
    size = _square(getattr(config, "image_size", None))
    if trained:
        size = _size_of(processor) or size
    mean, std = _moments_of(processor)
    fields = json.loads(config.to_json_string(use_diff=False))
    fields.pop("_name_or_path", None)  # a path of this machine
    return Definition("transformers", fields, getattr(config, "num_channels", 3), size, mean, std)


def _size_of(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    """What the network gets to see: the crop, where there is one."""
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    return _square(crop or processor.get("size"))


def _square(size: Any) -> tuple[int, int] | None:
    if isinstance(size, Mapping):
        side = size.get("shortest_edge")
        return (size["height"], size["width"]) if "height" in size else (side, side) if side else None
    if isinstance(size, int):
        return size, size
    return (size[0], size[1]) if size else None


def _moments_of(processor: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels in [0, 1]; a processor may scale bytes by another factor than 1/255 before."""
    scale = 255 * (processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1)
    if processor and not processor.get("do_normalize", True):
        return (0.0,), (1 / scale,)
    mean, std = processor.get("image_mean") or (0.5,), processor.get("image_std") or (0.5,)
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _python_parts(name: str) -> tuple[Path, str]:
    file, _, function = name.removeprefix("py:").rpartition(":")
    if not file or not function:
        raise ConfigError(f"A network of your own is py:FILE.py:FUNCTION, for example py:nets.py:small; got {name!r}.")
    return Path(file), function


def _from_python(name: str, num_classes: int) -> nn.Module:
    file, function = _python_parts(name)
    if not file.is_file():
        raise ConfigError(f"{name!r}: there is no file {file}. A network of your own needs its file to be loaded.")
    spec = importlib.util.spec_from_file_location(f"jemstone_network_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{name!r}: {file} is not a Python file.")
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    make = getattr(source, function, None)
    if not callable(make):
        raise ConfigError(f"{name!r}: {file} has no function {function}.")
    required = [p for p in inspect.signature(make).parameters.values() if p.default is p.empty and p.kind < 2]
    module = make(num_classes) if required else make()
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{name!r}: {function} returns a {type(module).__name__}, and must return an nn.Module.")
    return module


def _timm() -> Any:
    make_importable()
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("timm", "timm") from error
    return timm


def _transformers() -> Any:
    make_importable()
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "hf") from error
    return transformers
