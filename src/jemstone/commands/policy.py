"""The options that set a policy, for every command that takes one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from jemstone.deployment.predictor import Predictor

USAGE = "[--error SHARE] [--rejection SHARE] [--coverage SHARE]"


def add_policy(parser: ArgumentParser) -> None:
    """The shares of a Policy, as options; the model's own where none is given."""
    parser.add_argument("--error", type=float | None, help="at most this share of the accepted labels is wrong")
    parser.add_argument("--rejection", type=float | None, help="at most this share of familiar inputs is refused")
    parser.add_argument("--coverage", type=float | None, help="candidates hold the true label at least so often")


def load_predictor(model: str | Path, options: Namespace, **loading: str) -> Predictor:
    """The predictor of `model`, with the policy that `options` ask for."""
    predictor = Predictor.load(model, **loading)  # type: ignore[arg-type]
    asked = {name: options[name] for name in ("error", "rejection", "coverage") if options[name] is not None}
    return predictor.with_policy(replace(predictor.policy, **asked)) if asked else predictor
