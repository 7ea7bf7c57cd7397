"""A trained model in use: by default computed in plain float32, in other ways to nearly the same numbers."""

from dataclasses import replace

import pytest
import torch

from jemstone.data import Dataset, Split, to_box
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.evaluation import BUDGETS
from jemstone.evaluation.evaluate_run import evaluate_run
from jemstone.execution import PLAIN, Execution
from jemstone.networks.modes import statistics_of_negatives
from jemstone.rng import generator
from jemstone.sampling import generate
from jemstone.training import choose, trained
from jemstone.training.recipes import recipe
from jemstone.training.session import Session
from jemstone.training.trained import SAMPLED_ON_CPU, SCORED_ON_CPU, load_trained

HALF = Execution("bf16-mixed", channels_last=True)


def train(folder, data, **changes):
    config = recipe("jem-small").with_values(
        steps=2,
        network={"name": "conv-32"},
        chains={"steps": 2, "buffer_size": 40},
        batch_size=16,
        real_batch_size=16,
        compile="off",
    )
    list(Session.start(config.with_values(**changes), data, run=folder).train())
    return folder


@pytest.fixture(scope="module")
def data():
    """Random images, as a data set stores them."""
    x = torch.randint(0, 256, (150, 3, 16, 16), dtype=torch.uint8, generator=generator(0, "images"))
    split = Split(x, torch.arange(150) % 3)
    return Dataset("images", split, split, split, ("a", "b", "c"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """Trained in bfloat16, with a network that is large enough for something else than float32 to be faster."""
    return train(tmp_path_factory.mktemp("trained") / "run", data, precision="bf16-mixed", chains={"mode": "train"})


def close(a, b):
    """Apart by a small share of what values differ by."""
    return (a - b).norm() < 0.05 * (b - b.mean(dim=0)).norm()


def test_by_default_a_run_is_used_in_plain_float32_however_it_was_trained(run, data):
    loaded = load_trained(run, device="cpu")
    assert loaded.execution == PLAIN
    x = to_box(data.test.inputs)
    with torch.no_grad():
        expected = torch.cat([loaded.model(part) for part in torch.split(x, SCORED_ON_CPU)])
    assert torch.equal(loaded.logits(data.test.inputs), expected)
    labels = torch.arange(SAMPLED_ON_CPU + 6) % 3  # two parts
    rng, options = generator(4, "sample"), {"by_class": True, "batch_size": SAMPLED_ON_CPU}
    with statistics_of_negatives(loaded.model):
        samples = generate(loaded.model, loaded.initial(), loaded.sampler, labels, 2, rng, **options)
    assert torch.equal(loaded.sample(labels, by_class=True, steps=2, seed=4), samples)


def test_fast_is_what_is_measured(run, data):
    fast, plain = load_trained(run, execution="fast", device="cpu"), load_trained(run, device="cpu")
    assert choose.forward_flops(plain.model, plain.input_shape) > choose.SMALL
    assert isinstance(fast.execution, Execution)
    assert not fast.execution.compiled
    assert "a chain step of 16 inputs takes" in fast.reason
    assert close(fast.log_density(data.test.inputs), plain.log_density(data.test.inputs))


def test_the_fastest_is_taken_and_weights_are_laid_out_for_it(run, data, monkeypatch):
    def medians(probe, executions):
        assert probe.config.chains.mode == "eval"
        return {e: 1 - 0.4 * (e.precision == "bf16-mixed") - 0.2 * e.channels_last for e in executions}

    monkeypatch.setattr(choose._Probe, "medians", medians)
    monkeypatch.setattr(choose, "has_bfloat16", lambda device: True)
    fast, plain = load_trained(run, execution="fast", device="cpu"), load_trained(run, device="cpu")
    assert fast.execution == HALF
    weights = [w for w in fast.model.parameters() if w.ndim == 4]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    for x in (data.test.inputs, plain.buffer):
        fast_logits, logits = fast.logits(x), plain.logits(x)
        assert fast_logits.dtype == torch.float32
        assert close(fast_logits, logits)
        assert close(fast.log_density(x), plain.log_density(x))


def test_an_execution_of_ones_own(run, data):
    """Precision alone: where it were left out, the same bits would come."""
    execution = Execution("bf16-mixed")
    half, plain = load_trained(run, execution=execution, device="cpu"), load_trained(run, device="cpu")
    assert (half.execution, half.reason) == (execution, "as asked for")
    labels = torch.arange(5) % 3
    pairs = [[t.sample(labels, steps=2) for t in (half, plain)], [t.logits(data.test.inputs) for t in (half, plain)]]
    for rounded, exact in pairs:
        assert rounded.dtype == torch.float32
        assert rounded.is_contiguous()
        assert close(rounded, exact)
        assert not torch.equal(rounded, exact)


def test_any_number_of_inputs_is_a_small_number_at_a_time(run, data, monkeypatch):
    """What keeps memory flat; stored images become floats no sooner."""
    seen = []
    forward = EnergyClassifier.forward

    def counted(model, x):
        seen.append(len(x))
        return forward(model, x)

    loaded = load_trained(run, device="cpu")
    monkeypatch.setattr(EnergyClassifier, "forward", counted)
    loaded.log_density(data.test.inputs)
    assert seen == [128, 22]
    seen.clear()
    loaded.sample(torch.zeros(130, dtype=torch.int64), steps=1)
    assert seen == [64, 64, 2]
    assert loaded.logits(data.test.inputs[:0]).shape == (0, 3)


def test_what_evaluates_a_run_computes_it_in_plain_float32(run, data, monkeypatch):
    forward, passes = EnergyClassifier.forward, []

    def watched(model, x):
        passes.append(torch.is_autocast_enabled("cpu"))
        assert x.is_contiguous()
        return forward(model, x)

    monkeypatch.setattr(EnergyClassifier, "forward", watched)
    protocol = replace(BUDGETS["quick"], resamples=5).only("calibration")
    evaluate_run(run, data=data, protocol=protocol)
    assert passes
    assert not any(passes)


def test_unknown_executions_and_impossible_ones_are_refused(tmp_path, data, run):
    plain = load_trained(run)
    with pytest.raises(ConfigError, match=r"execution must be 'plain', 'fast' or an Execution; got 'quick'"):
        trained._choice("quick", plain.model, plain.config, plain.input_shape)
    train(tmp_path / "mala", data, chains={"kernel": "mala"}, network={"name": "conv-4"})
    exact = load_trained(tmp_path / "mala", execution="fast")
    assert exact.execution.precision == "32-true"
    exact.sample(torch.arange(2), steps=1)
    half = load_trained(tmp_path / "mala", execution=HALF)
    assert half.log_density(data.test.inputs[:2]).isfinite().all()
    with pytest.raises(ConfigError, match="kernel mala needs exact energies"):
        half.sample(torch.arange(2), steps=1)
