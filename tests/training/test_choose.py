"""How a run is executed: what is tried, what is chosen, and that it is kept."""

import copy
import json

import pytest
import torch

from jemstone.data import Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.execution import PLAIN, Execution
from jemstone.networks import build_network
from jemstone.objective import LossWeights, Negatives, jem_loss
from jemstone.rng import generator, seeded
from jemstone.runs import Run
from jemstone.training import choose, loop
from jemstone.training import session as session_module
from jemstone.training.choose import Choice, choose_execution, forward_flops
from jemstone.training.config import ChainConfig, OptimizerConfig, TrainConfig
from jemstone.training.session import Session

SHAPE = (3, 16, 16)
CONFIG = TrainConfig(
    steps=6,
    batch_size=4,
    real_batch_size=4,
    log_every=2,
    checkpoint_every=3,
    validate_every=0,
    weights=LossWeights(class_nll=1.0, marginal=1.0),
    chains=ChainConfig(steps=2, buffer_size=20, clamp=True),
    optimizer=OptimizerConfig("adam", 1e-3),
)
HALF, LAST, BOTH = Execution("bf16-mixed"), Execution(channels_last=True), Execution("bf16-mixed", channels_last=True)


def make_model(network="wrn-10-1", **settings) -> EnergyClassifier:
    with seeded(0, "model"):
        return EnergyClassifier(build_network(network, SHAPE, 5, **settings))


def images(shape=SHAPE, n=40) -> Dataset:
    x = torch.rand(n, *shape, generator=generator(0, "images")) * 2 - 1
    split = Split(x, torch.arange(n) % 5)
    return Dataset("images", split, split, split, tuple("abcde"))


def timed(monkeypatch, seconds, agreement=1.0):
    """Let the probe find these times, by execution, and this agreement."""
    asked = []

    def medians(self, executions):
        asked.extend(executions)
        return {execution: seconds[execution] for execution in executions}

    monkeypatch.setattr(choose._Probe, "medians", medians)
    monkeypatch.setattr(choose._Probe, "agreement", lambda self, a, b: agreement)
    monkeypatch.setattr(choose, "has_bfloat16", lambda device: True)
    return asked


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({PLAIN: 1.0, HALF: 1.1, LAST: 1.2, BOTH: 1.3}, PLAIN),
        ({PLAIN: 1.0, HALF: 0.9, LAST: 0.8, BOTH: 0.3}, BOTH),
        ({PLAIN: 1.0, HALF: 0.5, LAST: 0.8, BOTH: 0.49}, HALF),  # 2 % are not worth another layout
        ({PLAIN: 1.0, HALF: 1.5, LAST: 0.8, BOTH: 0.79}, LAST),
        ({PLAIN: 1.0, HALF: 0.98, LAST: 0.97, BOTH: 0.96}, PLAIN),
    ],
)
def test_the_fastest_is_chosen_and_the_plainest_among_equals(monkeypatch, seconds, chosen):
    timed(monkeypatch, seconds)
    choice = choose_execution(make_model(), CONFIG, SHAPE, 6)
    assert choice.execution == chosen
    assert f"{seconds[chosen]:.0%}" in choice.reason


def test_what_is_configured_is_not_tried(monkeypatch):
    asked = timed(monkeypatch, {PLAIN: 1.0, HALF: 0.1, LAST: 0.5, BOTH: 0.1})
    choice = choose_execution(make_model(), CONFIG.with_values(precision="32-true"), SHAPE, 6)
    assert choice.execution == LAST
    assert set(asked) == {PLAIN, LAST}
    fixed = CONFIG.with_values(precision="bf16-mixed", layout="contiguous", compile="off")
    assert choose_execution(make_model(), fixed, SHAPE, 6) == Choice(HALF, "as configured")


def test_gradients_that_differ_too_much_rule_bfloat16_out(monkeypatch):
    timed(monkeypatch, {PLAIN: 1.0, HALF: 0.1, LAST: 0.9, BOTH: 0.1}, agreement=0.9)
    choice = choose_execution(make_model(), CONFIG, SHAPE, 6)
    assert choice.execution == LAST
    assert "differ too much" in choice.reason


def test_mala_and_other_hardware_have_no_bfloat16(monkeypatch):
    times = {PLAIN: 1.0, HALF: 0.1, LAST: 0.9, BOTH: 0.1}
    timed(monkeypatch, times)
    exact = CONFIG.with_values(chains={"kernel": "mala"})
    choice = choose_execution(make_model(), exact, SHAPE, 6)
    assert choice.execution == LAST
    assert "mala" in choice.reason
    monkeypatch.setattr(choose, "has_bfloat16", lambda device: False)
    choice = choose_execution(make_model(), CONFIG, SHAPE, 6)
    assert choice.execution == LAST
    assert "device" in choice.reason


def test_small_networks_are_left_alone(monkeypatch):
    monkeypatch.setattr(choose._Probe, "medians", None)  # nothing is timed
    small = make_model("conv-2-2")
    assert forward_flops(small, SHAPE) < choose.SMALL
    assert choose_execution(small, CONFIG, SHAPE, 6).execution == PLAIN
    as_asked = CONFIG.with_values(precision="bf16-mixed", layout="channels_last")
    assert choose_execution(small, as_asked, SHAPE, 6).execution == BOTH


def test_flops_are_those_of_the_convolutions_and_products():
    # 3 -> 4 channels at 16 x 16, 4 -> 8 at 8 x 8, kernels of 9, and 8 * 4 * 4 features to 5 classes; 2 for each pair
    by_hand = 2 * (16 * 16 * 4 * 3 * 9 + 8 * 8 * 8 * 4 * 9 + 8 * 4 * 4 * 5)
    assert forward_flops(make_model("conv-4-2"), SHAPE) == by_hand


@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("weights", [LossWeights(class_nll=1.0), LossWeights(class_nll=1.0, marginal=1.0)])
def test_trying_leaves_the_model_as_it_is(weights, spectral):
    model = make_model(norm="batch", dropout=0.2, spectral_norm=spectral)
    model.network.final_norm.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    torch.manual_seed(3)
    stream = torch.get_rng_state()
    choose_execution(model, CONFIG.with_values(weights=weights, chains={"mode": "train"}), SHAPE, 6)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), stream)


def test_a_compiler_that_fails_or_errs_is_left_out_or_explained(monkeypatch):
    monkeypatch.setattr(choose, "WORTH_COMPILING", 0.0)
    compiled = Execution(compiled=4)
    times = {PLAIN: 1.0, HALF: 2.0, LAST: 2.0, BOTH: 2.0, compiled: 0.5}
    timed(monkeypatch, times)
    choice = choose_execution(make_model(), CONFIG, SHAPE, 6)
    assert choice.execution == compiled
    timed(monkeypatch, times | {compiled: 0.99})
    assert choose_execution(make_model(), CONFIG, SHAPE, 6).execution == PLAIN
    assert choose_execution(make_model(), CONFIG.with_values(compile="on"), SHAPE, 6).execution == compiled
    timed(monkeypatch, times, agreement=0.9)
    choice = choose_execution(make_model(), CONFIG, SHAPE, 6)
    assert choice.execution == PLAIN
    assert "wrong" in choice.reason
    with pytest.raises(ConfigError, match=r"compile is 'on', but the compiled gradient is wrong.*0\.900"):
        choose_execution(make_model(), CONFIG.with_values(compile="on"), SHAPE, 6)

    def fails(self, a, b):
        if a.compiled:
            raise RuntimeError("no compiler found\nmore")
        return 1.0

    monkeypatch.setattr(choose._Probe, "agreement", fails)
    assert "torch.compile failed: no compiler found" in choose_execution(make_model(), CONFIG, SHAPE, 6).reason
    with pytest.raises(ConfigError, match="Set compile to 'off'"):
        choose_execution(make_model(), CONFIG.with_values(compile="on"), SHAPE, 6)


def test_a_network_without_weights_or_with_idle_ones_can_be_tried():
    class TwoHeads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.idle = build_network("wrn-10-1", SHAPE, 5), torch.nn.Linear(2, 2)

        def forward(self, x):
            return self.network(x)

    classifier = CONFIG.with_values(weights=LossWeights(class_nll=1.0))
    assert choose_execution(EnergyClassifier(TwoHeads()), classifier, SHAPE, 6).reason
    frozen = make_model().requires_grad_(False)
    assert choose_execution(frozen, CONFIG, SHAPE, 6).execution == PLAIN


def test_gradients_of_zero_agree():
    model = make_model()
    torch.nn.init.zeros_(model.network.head.weight)
    probe = choose._Probe(model, CONFIG, SHAPE)
    assert not probe.gradient(PLAIN).any()
    assert probe.agreement(PLAIN, HALF) == 1.0


def test_every_density_that_chains_descend_is_tried():
    both = CONFIG.with_values(weights={"conditional": 1.0})
    probe = choose._Probe(make_model(), both, SHAPE)
    rows = probe.gradient(PLAIN)
    assert len(rows) == 2 * CONFIG.real_batch_size
    assert not torch.allclose(rows[:4], rows[4:])
    only = choose._Probe(make_model(), CONFIG.with_values(weights={"conditional": 1.0, "marginal": 0.0}), SHAPE)
    torch.testing.assert_close(only.gradient(PLAIN), rows[4:])


def test_compiling_is_refused_where_there_are_no_chains():
    with pytest.raises(ConfigError, match="compile is about chains"):
        CONFIG.with_values(weights=LossWeights(class_nll=1.0), compile="on")


def test_a_run_from_before_the_choice_goes_on_in_its_precision(tmp_path):
    config = CONFIG.with_values(network={"name": "conv-4-2"}, precision="bf16-mixed")
    Session.start(config, images(), run=tmp_path / "run")
    path = tmp_path / "run/config.json"
    facts = json.loads(path.read_text())
    del facts["execution"]
    path.write_text(json.dumps(facts))
    assert Session.resume(tmp_path / "run", images()).trainer.execution == HALF


def test_short_runs_are_not_compiled_for(monkeypatch):
    timed(monkeypatch, {PLAIN: 1.0, HALF: 2.0, LAST: 2.0, BOTH: 2.0})  # asked for a compiled time, it would raise
    assert choose_execution(make_model(), CONFIG, SHAPE, 100).execution == PLAIN
    with pytest.raises(KeyError):
        choose_execution(make_model(), CONFIG, SHAPE, 1000)  # 2,000 seconds of chains


def test_a_run_keeps_its_execution(tmp_path, monkeypatch):
    config = CONFIG.with_values(network={"name": "conv-4-2"}, precision="bf16-mixed", layout="channels_last")
    session = Session.start(config, images(), run=tmp_path / "run")
    assert session.trainer.execution == BOTH
    assert json.loads((tmp_path / "run/config.json").read_text())["execution"] == BOTH.__dict__
    started = Run(tmp_path / "run").rows("events.jsonl")[0]
    assert started["execution"] == "bfloat16, channels last"
    assert started["reason"]
    monkeypatch.setattr(session_module, "agreed_execution", None)  # a resumed run chooses nothing
    assert Session.resume(tmp_path / "run", images()).trainer.execution == BOTH


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resume_in_bfloat16_and_channels_last_is_bitwise(tmp_path, optimizer):
    config = CONFIG.with_values(
        network={"name": "conv-4-2"}, precision="bf16-mixed", layout="channels_last", optimizer={"name": optimizer}
    )
    whole = Session.start(config, images(), run=tmp_path / "whole")
    rows = [{**row, "seconds": 0} for row in whole.train()]
    stopped = Session.start(config, images(), run=tmp_path / "stopped")
    iterator = stopped.train()
    for _ in range(4):
        next(iterator)  # one beyond the checkpoint
    resumed = Session.resume(tmp_path / "stopped", images())
    assert [{**row, "seconds": 0} for row in resumed.train()] == rows[3:]
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    weight, moments = next((w, v) for w, v in resumed.state.optimizer.state.items() if w.ndim == 4)
    assert {value.stride() for value in moments.values() if value.shape == weight.shape} == {weight.stride()}


def test_one_forward_pass_gives_the_same_loss_and_gradient():
    model, data = make_model("conv-4-2"), images()
    rows = data.train.inputs
    batches = [loop.Batch(rows[:4], torch.tensor([0, 1, 2, 3])), loop.Batch(rows[4:9], torch.arange(5))]
    weights = LossWeights(class_nll=2.0, marginal=1.0, joint=0.5, energy_l2=0.1, discrimination=0.3)
    found = []
    for merged in (False, True):
        model.zero_grad()
        loss = jem_loss(model, *batches, Negatives(rows[9:12]), weights, merged=merged)
        loss.total.backward()
        found.append((loss, [p.grad.clone() for p in model.parameters()]))
    (apart, gradients), (together, others) = found
    for name in ("total", "class_nll", "accuracy", "energy_gap", "energy_l2", "discrimination"):
        torch.testing.assert_close(getattr(apart, name), getattr(together, name))
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b)


def test_batches_are_merged_only_where_no_layer_mixes_inputs():
    def mergeable(model, config=CONFIG):
        return choose._mergeable(choose._Probe(model, config, SHAPE), config)

    assert mergeable(make_model("mlp-4"))
    assert mergeable(make_model("mlp-4", dropout=0.5))
    assert not mergeable(make_model("conv-4-2", norm="batch"))
    assert not mergeable(make_model("mlp-4"), CONFIG.with_values(weights={"class_nll": 0.0}))
    silent = make_model("mlp-4")
    torch.nn.init.zeros_(silent.network.head.weight)
    assert not mergeable(silent)  # its logits would not show what a layer before them does
    vectors = EnergyClassifier(build_network("mlp-4", (7,), 5))
    assert choose_execution(vectors, CONFIG, (7,), 6).execution == Execution(merged=True)


def test_a_merged_run_logs_the_parts_of_the_gradient_all_the_same():
    config = CONFIG.with_values(network={"name": "mlp-4"})
    session = Session.start(config, images((7,)))
    assert session.trainer.execution.merged
    rows = list(session.train())
    assert [("grad_real" in row, row["step"] % 2 == 0) for row in rows] == [(row["step"] % 2 == 0,) * 2 for row in rows]
