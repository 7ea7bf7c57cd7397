"""A predictor as one file that runs without jemstone: ONNX, a torch.export program, or weights with their settings."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from jemstone.deployment.deployed import OUTPUTS, Deployed, settings
from jemstone.deployment.parity import Answer, compare, inputs_to_try
from jemstone.deployment.predictor import Predictor
from jemstone.energy import EnergyClassifier
from jemstone.errors import MissingExtra, RunError
from jemstone.networks import build_network
from jemstone.rng import seeded
from jemstone.runs import write_atomically
from jemstone.training.inputs import CUSTOM

OPSET = 18
"""Of ONNX: what torch.onnx writes without converting."""


class Exported(NamedTuple):
    """A written file, or folder of files, that was read back and tried."""

    path: Path
    parity: float
    """The largest difference from torch in logits, probabilities and energies, relative where these exceed 1."""
    size: int
    """Bytes."""


def export_onnx(predictor: Predictor, path: str | Path) -> Exported:
    """Write `predictor` as the ONNX file `path`, with any batch size; see `Deployed` for inputs and outputs.

    Weights, temperature and thresholds are inside; its metadata has the class names, the policy, the thresholds and the
    units of its input, as JSON (`settings`). The file is run in onnxruntime and compared with torch on several batch
    sizes before it is kept.

    Raises MissingExtra without onnx, onnxscript or onnxruntime, and RunError where the network cannot be exported or
    the file computes something else.
    """
    path = Path(path)
    onnx, runtime = _onnx()
    deployed, example = _deployed(predictor)
    try:
        with _quiet():
            program = torch.onnx.export(
                deployed,
                (example,),
                dynamo=True,
                input_names=["inputs"],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                verbose=False,
            )
        assert program is not None, "the exporter was not told to write the file itself"
        model = program.model_proto
    except Exception as error:  # of many kinds, by what the network does
        raise RunError(f"{predictor.trained.run.path} cannot be exported to ONNX: {_first_line(error)}") from error
    for part in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        del part.metadata_props[:]  # the lines that each node came from, with this machine's paths
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in settings(predictor).items()})
    content = model.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def answer(inputs: Tensor) -> dict[str, NDArray[Any]]:
        return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"inputs": inputs.numpy()}), strict=True))

    parity = compare(predictor, deployed.model, answer, path)
    _write(path, content)
    return Exported(path, parity, len(content))


def export_program(predictor: Predictor, path: str | Path) -> Exported:
    """Write `predictor` as a torch.export program (.pt2), with any batch size; see `Deployed` for inputs and outputs.

    `torch.export.load(path).module()` runs it; its extra file jemstone.json holds `settings`. It is read back and
    compared before it is kept. Raises RunError as `export_onnx` does.
    """
    path = Path(path)
    deployed, example = _deployed(predictor)
    try:
        with _quiet():
            program = torch.export.export(deployed, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # of many kinds, by what the network does
        raise RunError(f"{predictor.trained.run.path} cannot be exported: {_first_line(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # with this machine's paths
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"jemstone.json": json.dumps(settings(predictor))})
    file.seek(0)
    with _quiet():
        module = torch.export.load(file).module()
    parity = compare(predictor, deployed.model, _answers(module), path)
    _write(path, file.getvalue())
    return Exported(path, parity, len(file.getvalue()))


def export_weights(predictor: Predictor, folder: str | Path) -> Exported:
    """Write model.safetensors, the network's state_dict, and config.json, `settings`, into `folder`.

    The weights are read back into a network that `build_network` makes of the settings, and compared; a network of your
    own is compared as its module. Raises RunError where that gives other logits.
    """
    folder = Path(folder)
    trained = predictor.trained
    model = _plain(trained.model)
    tensors = {name: value.clone().contiguous() for name, value in model.network.state_dict().items()}
    chosen = settings(predictor)
    files = {"model.safetensors": save(tensors), "config.json": (json.dumps(chosen, indent=1) + "\n").encode()}
    network = copy.deepcopy(model.network)
    name = trained.config.network.name
    if name != CUSTOM and not name.startswith("py:"):  # in the settings, a file of one's own has lost its folder
        with seeded(0, "network"):
            network = build_network(
                input_shape=trained.input_shape, num_classes=len(trained.class_names), **chosen["network"]
            )
    network.load_state_dict(load(files["model.safetensors"]))
    again, _ = _deployed(predictor, EnergyClassifier(network))
    parity = compare(predictor, model, _answers(again), folder)
    for name, content in files.items():
        _write(folder / name, content)
    return Exported(folder, parity, sum(map(len, files.values())))


def _plain(model: EnergyClassifier) -> EnergyClassifier:
    """A copy on the CPU, in float32 and eval mode, whatever device and layout the model has."""
    plain = copy.deepcopy(model).to("cpu", torch.float32).eval()
    plain.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stub lacks it
    return plain


def _deployed(predictor: Predictor, model: EnergyClassifier | None = None) -> tuple[Deployed, Tensor]:
    """The module to export, and inputs to trace it with: two, because a batch of one would become a constant."""
    model = (model or _plain(predictor.trained.model)).eval().requires_grad_(False)
    deployed = Deployed(model, predictor.calibration.temperature, predictor.thresholds, predictor.moments)
    return deployed.eval(), inputs_to_try(predictor, 2)


def _answers(module: nn.Module) -> Answer:
    @torch.no_grad()
    def answer(inputs: Tensor) -> dict[str, NDArray[Any]]:
        return {name: value.numpy() for name, value in zip(OUTPUTS, module(inputs), strict=True)}

    return answer


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings about their own code."""
    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        yield


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror}.") from error
    write_atomically(path, content)


def _onnx() -> tuple[Any, Any]:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtra(package, "onnx") from error
    import onnx
    import onnxruntime

    return onnx, onnxruntime


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))
