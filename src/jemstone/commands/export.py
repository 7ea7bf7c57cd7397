"""jemstone export: a run as one file that runs without jemstone."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

from jemstone.commands.policy import USAGE, add_policy, load_predictor
from jemstone.deployment.deployed import OUTPUTS
from jemstone.deployment.export import export_onnx, export_program, export_weights

NAME = "export"
HELP = "a run as ONNX, as a torch.export program, or as weights with their settings"
FORMATS = {"onnx": export_onnx, "program": export_program, "safetensors": export_weights}
_EXAMPLES = {
    "onnx": """\
import onnxruntime
session = onnxruntime.InferenceSession({path!r})
{outputs} = session.run(None, {{"inputs": inputs}})""",
    "program": """\
import torch
predict = torch.export.load({path!r}).module()
{outputs} = predict(inputs)""",
    "safetensors": """\
import json, jemstone, safetensors.torch
config = json.load(open({path!r} + "/config.json"))
network = jemstone.build_network(input_shape=tuple(config["input_shape"]), num_classes={classes}, **config["network"])
network.load_state_dict(safetensors.torch.load_file({path!r} + "/model.safetensors"))""",
}


def parser() -> ArgumentParser:
    """Its arguments."""
    parser = ArgumentParser(
        usage=f"jemstone export MODEL --out FILE [--format onnx|program|safetensors]\n                       {USAGE}",
        description="Write a model as one file that runs without jemstone, with calibration and thresholds inside, and "
        "compare it with torch. onnx needs the extra jemstone[onnx]; program is torch.export (.pt2); safetensors is a "
        "folder of weights and a config.json.",
    )
    parser.add_argument("model", metavar="MODEL", help="run directory, name, or hub id")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="what to write")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file, or for safetensors folder")
    add_policy(parser)
    return parser


def run(options: Namespace, console: Console) -> None:
    """Export; print what the file returns, how far it is from torch, its size, and how to use it."""
    predictor = load_predictor(options.model, options, device="cpu")
    found = FORMATS[options.format](predictor, options.out)
    units = "images in [0, 1]" if predictor.moments is None else "vectors in raw units"
    shape = ", ".join(map(str, predictor.trained.input_shape))
    console.print(f"Written to {found.path}: {found.size / 1e6:.2f} MB.")
    if options.format == "safetensors":
        console.print("Weights: model.safetensors. How inputs are prepared, temperature and thresholds: config.json.")
    else:
        console.print(f"Inputs: float32 (n, {shape}), {units}. Outputs: {', '.join(OUTPUTS)}.")
    console.print(f"Largest difference from torch: {found.parity:.1e}.\n")
    example = _EXAMPLES[options.format].format(
        path=str(found.path), outputs=", ".join(OUTPUTS), classes=len(predictor.trained.class_names)
    )
    console.print(Text(example), soft_wrap=True)
