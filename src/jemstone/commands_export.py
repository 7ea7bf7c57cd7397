"""`jemstone export` and `jemstone publish`: a run as files that others use."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.syntax import Syntax

from jemstone.deployment.deployed import OUTPUTS
from jemstone.deployment.export import export_onnx, export_program, export_weights
from jemstone.deployment.predictor import Predictor
from jemstone.errors import ConfigError

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


def export_parser() -> ArgumentParser:
    """What `jemstone export` takes."""
    parser = ArgumentParser(
        usage="jemstone export RUN --format onnx|program|safetensors --out FILE",
        description="Write a run as one file that runs without jemstone, with calibration and thresholds inside, and "
        "compare it with torch. onnx needs the extra jemstone[onnx]; program is torch.export (.pt2); safetensors is a "
        "folder of weights and a config.json.",
    )
    parser.add_argument("run", metavar="RUN", help="run directory, model that comes with jemstone, or OWNER/NAME")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="what to write")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file, or for safetensors folder")
    return parser


def publish_parser() -> ArgumentParser:
    """What `jemstone publish` takes."""
    parser = ArgumentParser(
        usage="jemstone publish RUN --out FOLDER [--license ID] [--buffer]\n"
        "       jemstone publish RUN --hub OWNER/NAME [--private] [--license ID] [--buffer]",
        description="Make a slim copy of a run to hand on, with a model card: into a folder, or as a repository of the "
        "Hugging Face hub. Predictor.load and every command that takes a run take it.",
    )
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--out", type=Path | None, metavar="FOLDER", help="folder to make")
    parser.add_argument("--hub", type=str | None, metavar="OWNER/NAME", help="repository to make, or to replace")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--license", type=str | None, metavar="ID", help="of the model, as the hub writes it: mit, ...")
    parser.add_argument("--buffer", action="store_true", help="with the replay buffer, from which samples are shown")
    return parser


def show_export(options: Namespace, console: Console) -> None:
    """Export a run; print what the file returns, how far it is from torch, its size, and how to use it."""
    predictor = Predictor.load(options.run, device="cpu")
    found = FORMATS[options.format](predictor, options.out)
    units = "vectors in raw units" if predictor.moments is not None else "images in [0, 1]"
    shape = ", ".join(map(str, predictor.trained.input_shape))
    console.print(f"Written to {found.path}: {found.size / 1e6:.2f} MB.")
    console.print(f"Input: float32 (n, {shape}), {units}.")
    if options.format != "safetensors":
        console.print(f"Outputs: {', '.join(OUTPUTS)}.")
    console.print(f"Largest difference from torch: {found.parity:.1e}.\n")
    example = _EXAMPLES[options.format].format(
        path=str(found.path), outputs=", ".join(OUTPUTS), classes=len(predictor.trained.class_names)
    )
    console.print(Syntax(example, "python", background_color="default", word_wrap=False))


def show_publish(options: Namespace, console: Console) -> None:
    """Hand a run on."""
    if (options.out is None) == (options.hub is None):
        raise ConfigError("Say where to: either --out FOLDER or --hub OWNER/NAME.")
    if options.private and options.hub is None:
        raise ConfigError("--private is about a repository of the hub: leave it out with --out.")
    predictor = Predictor.load(options.run, device="cpu")
    if options.out is not None:
        where = predictor.save(options.out, buffer=options.buffer, license=options.license)
        size = sum(file.stat().st_size for file in where.rglob("*") if file.is_file())
        console.print(f"Written to {where}: {size / 1e6:.2f} MB. Its model card: {where / 'README.md'}")
        return
    private = True if options.private else None  # else as the owner's default is
    url = predictor.push_to_hub(options.hub, private=private, buffer=options.buffer, license=options.license)
    console.print(f"Pushed to {url}. Next: jemstone.Predictor.load({options.hub!r})")
