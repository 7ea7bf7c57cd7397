"""A run that is quick to make: a JEM of digits, small, and barely trained."""

import pytest

from jemstone import Session, recipe
from jemstone.deployment.predictor import Predictor
from jemstone.runs import Run


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Run:
    """A generative run that knows some digits: 60 steps."""
    path = tmp_path_factory.mktemp("deployment") / "jem"
    config = recipe("jem-small").with_values(
        steps=60,
        batch_size=32,
        real_batch_size=32,
        network={"name": "conv-8"},
        chains={"steps": 3, "buffer_size": 64},
        precision="32-true",
        layout="contiguous",
        validate_every=0,
    )
    for _ in Session.start(config, run=path).train():
        pass
    return Run(path)


@pytest.fixture(scope="session")
def predictor(digits_run) -> Predictor:
    """Its predictor."""
    return Predictor.load(digits_run.path)
