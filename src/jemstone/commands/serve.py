"""jemstone serve: a model behind HTTP."""

from __future__ import annotations

import logging
from dataclasses import fields

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from jemstone.commands.policy import USAGE, add_policy, load_predictor
from jemstone.deployment.serve.settings import ServeSettings
from jemstone.errors import MissingExtra

NAME = "serve"
HELP = "a model behind HTTP, with a page in front of it"


def parser() -> ArgumentParser:
    """Its arguments."""
    parser = ArgumentParser(
        usage="jemstone serve RUN [--host HOST] [--port PORT] [--token ENV|FILE] [--SETTING VALUE]\n"
        f"                      {USAGE}",
        description="Serve a run, a model that comes with jemstone (digits, fashion-mnist) or one of the Hugging Face "
        "hub: predictions, samples, metrics, and a page at /.",
    )
    parser.add_argument("run", metavar="RUN", help="run directory, name, or OWNER/NAME")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; others than this machine: 0.0.0.0")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at; 0: any that is free")
    parser.add_argument("--token", type=str | None, help="environment variable, or file, with the token to ask for")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where the model computes")
    add_policy(parser)
    parser.add_class_arguments(ServeSettings)
    return parser


def run(options: Namespace, console: Console) -> None:
    """Serve until stopped."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "serve") from error
    from jemstone.deployment.serve.app import make_app
    from jemstone.deployment.serve.server import bound, is_loopback, read_token, run_server

    settings = ServeSettings(**{field.name: options[field.name] for field in fields(ServeSettings)})
    token = None if options.token is None else read_token(options.token)
    own = bound(options.host, options.port)
    predictor = load_predictor(options.run, options, device=options.device)
    app = make_app(predictor, settings, token=token)
    host, port = own.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    trained = predictor.trained
    shape = "x".join(map(str, trained.input_shape))
    console.print(f"Serving {trained.run.path} ({trained.config.recipe}, step {trained.step}, {shape}) at {address}")
    if token is None and not is_loopback(own):
        console.print(f"warning: {host} can be reached from elsewhere, and no token is asked for: see --token.")
    authorisation = "" if token is None else " -H 'Authorization: Bearer TOKEN'"
    example = "-F file=@IMAGE.png" if len(trained.input_shape) == 3 else "--json '{\"inputs\": [[...]]}'"
    console.print(f"Try: curl {address}/v1/predict{authorisation} {example}")
    console.print("Stop with Ctrl-C; what was accepted is finished first.")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what is answered with a 400
    log = logging.getLogger("jemstone.serve")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    run_server(app, own, head_seconds=settings.head_seconds)
    console.print("Stopped.")
