"""Any classifier becomes a run directory, without training: the network as it is, read as an energy-based model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jemstone.data import Dataset, load_dataset, to_box
from jemstone.data.sources import absolute_source
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.networks.foreign import FOREIGN, Definition, absolute_network, define, fetch, is_foreign
from jemstone.networks.modes import in_mode
from jemstone.networks.weights import load_weights, read_weights
from jemstone.rng import seeded
from jemstone.runs import Run, require_free
from jemstone.training.config import TrainConfig
from jemstone.training.imported import sha256_of, write_untrained
from jemstone.training.inputs import CUSTOM, check_dataset, make_model

VALIDATION = 0.5
"""Share of the given training examples that calibration gets: a network that is not trained needs none itself."""
COMPARED = 4
"""Images on which a network is compared with itself, built anew."""


def wrap(
    network: nn.Module | str,
    data: Dataset | str,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    size: int | Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[int] | None = None,
    validation: float = VALIDATION,
    seed: int = 0,
) -> Run:
    """Make the run directory `out` of a trained classifier, to be calibrated, evaluated and served like any run.

    `network` is a name (`timm:NAME`, `hf:FOLDER_OR_ID`, `py:FILE.py:FUNCTION`), for which `weights` may name a file
    (safetensors, or a state dict, read without running code; without one, a library's own are fetched), or an object:
    a model of timm or transformers, or any module from inputs in jemstone's units to logits; `Adapted` makes one of a
    network with other units. What is of timm or transformers lies in the run whole, and loads without its source;
    `py:` needs its file, and another module is given again as `network=` where the run is loaded.

    `data` are labelled examples, as a source or loaded, that the network was not trained on. Output i of the network
    is class i of the data; where its outputs are others, or more, `classes` says which one is each class, and the rest
    is left out of p(y|x) and of E(x). The share `validation` of the training examples (half; of a `Dataset`, its own
    split) is for calibration, the rest for fine-tuning, and the test split for evaluation.

    `size`, `mean` and `std` (of pixels in [0, 1]) take the place of what timm and transformers say of their models.

    Raises ConfigError where network, data and settings do not fit each other; CheckpointError where `weights` cannot be
    read or do not fit; RunError where `out` is not free; DataError as `load_dataset` does; MissingExtra without the
    library. Whatever is raised, nothing is left at `out`, unless writing itself failed.
    """
    require_free(out)
    config = TrainConfig(recipe="classifier", seed=seed).with_values(data={"validation": validation})
    if isinstance(data, str):
        config = config.with_values(data={"source": absolute_source(data)})
        data = load_dataset(data, validation=validation, seed=seed)
    else:
        config = config.with_values(data={"source": CUSTOM})
        data = check_dataset(data)
    if len(data.validation) == 0:
        raise ConfigError(
            f"{data.name} has no validation split to calibrate on: keep `validation` above 0, or give a Dataset that "
            "has one."
        )

    module = _module(network, data, weights)
    sides = (size, size) if isinstance(size, int) else size
    definition = define(module, trained=True, size=sides, mean=mean, std=std, classes=classes)
    if definition is not None:
        module = _rebuilt(definition, module, data)
        config = config.with_values(network={"name": definition.name, "definition": definition.to_text()})
    elif any(given is not None for given in (size, mean, std, classes)):
        raise ConfigError(
            "size, mean, std and classes are for models of timm and transformers. Give another network what it needs "
            "itself: Adapted(network, size=..., mean=..., std=..., classes=...)."
        )
    else:
        config = config.with_values(network={"name": absolute_network(network) if isinstance(network, str) else CUSTOM})
    model = make_model(config, data.input_shape, data.num_classes, module)
    return write_untrained(out, config, data, model, _origin(network, weights, definition))


def _module(network: nn.Module | str, data: Dataset, weights: str | Path | None) -> nn.Module:
    """The network, with its weights, as whoever made it has it."""
    if not isinstance(network, str):
        if weights is not None:
            raise ConfigError("A network given as an object has its weights: leave `weights` out, or give a name.")
        return network.network if isinstance(network, EnergyClassifier) else network
    if not is_foreign(network):
        raise ConfigError(f"{network!r} names no network to wrap. Names are: {', '.join(FOREIGN)}.")
    if weights is None:
        return fetch(network, data.num_classes, trained=True)
    if network.startswith("hf:"):
        raise ConfigError("The weights of a transformers model lie in its folder (save_pretrained): give hf:FOLDER.")
    state = read_weights(weights)
    module = fetch(network, data.num_classes, trained=False)
    head = getattr(module, "pretrained_cfg", {}).get("classifier")
    outputs = state[f"{head}.weight"].shape[0] if f"{head}.weight" in state else data.num_classes
    if outputs != data.num_classes:  # of which `classes` will choose
        module = fetch(network, outputs, trained=False)
    load_weights(module, state, weights)
    return module


def _rebuilt(definition: Definition, original: nn.Module, data: Dataset) -> nn.Module:
    """What a run of `definition` will build, with the weights of `original`, and known to compute the same."""
    with seeded(0, "definition"):
        module = definition.build()
    remedy = (
        "It was changed since its library made it. Give it as a module of your own, Adapted(network, size=..., "
        "mean=..., std=...), and again as network= where the run is loaded."
    )
    try:
        module.network.load_state_dict(original.state_dict())
    except RuntimeError as error:
        raise ConfigError(f"The model differs from {definition.name} as it is built anew: {error} {remedy}") from error
    x = to_box(data.validation.inputs[:COMPARED])
    device = next(original.parameters()).device
    with torch.no_grad(), in_mode(original, training=False), in_mode(module, training=False):
        wanted, found = definition.adapted(original).to(device)(x.to(device)).cpu(), module(x)
    if not torch.allclose(wanted, found, rtol=1e-3, atol=1e-3):
        raise ConfigError(f"The model does not compute what {definition.name} does as it is built anew. {remedy}")
    return module


def _origin(network: nn.Module | str, weights: str | Path | None, definition: Definition | None) -> dict[str, Any]:
    """Where the weights come from, for the run's config.json."""
    if weights is not None:
        return {"file": Path(weights).name, "sha256": sha256_of(Path(weights)), "layout": "wrapped", "chains": 0}
    own = network if isinstance(network, str) else f"a {type(network).__name__} given in Python"
    return {"file": own if definition is None else definition.name, "layout": "wrapped", "chains": 0}
