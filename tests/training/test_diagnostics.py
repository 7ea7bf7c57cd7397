"""What a step says about itself: each number against its definition, and what it costs."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from jemstone.data import Batch, Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.networks import build_network
from jemstone.objective import LossWeights, Negatives, jem_loss
from jemstone.rng import generator
from jemstone.training import diagnostics, loop
from jemstone.training.config import ChainConfig, OptimizerConfig, TrainConfig
from jemstone.training.diagnostics import class_coverage, energy_auc, nearest_distance
from jemstone.training.loop import draw_negatives, train_step
from jemstone.training.setup import Trainer, make_buffer, make_fabric
from jemstone.training.state import TrainState

CONFIG = TrainConfig(
    log_every=1,
    steps=20,
    batch_size=8,
    real_batch_size=6,
    weights=LossWeights(class_nll=1.0, marginal=0.7),
    chains=ChainConfig(steps=3, buffer_size=20, clamp=True),
    optimizer=OptimizerConfig("sgd", 0.05, momentum=0.0),
)


def prepare(config=CONFIG):
    labels = torch.arange(60) % 2
    noise = torch.randn(60, 1, 4, 4, generator=generator(0, "blobs")) * 0.1
    split = Split((noise + (labels.float() * 0.8 - 0.4).view(-1, 1, 1, 1)).clamp(-1, 1), labels)
    data = Dataset("blobs", split, split, split, ("a", "b"))
    fabric = make_fabric(config.with_values(device="cpu"))
    settings = config.network
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network("conv-4-2", (1, 4, 4), 2, norm=settings.norm, statistics=settings.statistics)
    trainer = Trainer.create(data, config, fabric)
    buffer = make_buffer(trainer.initial, config, 2, fabric) if config.weights.generative else None
    return TrainState.create(EnergyClassifier(network), config, buffer, fabric.device), trainer


@pytest.mark.parametrize("seed", range(5))
def test_energy_auc_counts_pairs_and_is_that_of_sklearn(seed):
    rng = np.random.default_rng(seed)
    real, negatives = rng.integers(0, 6, 13) / 2, rng.integers(1, 9, 17) / 2  # with ties
    pairs = [(n > r) + 0.5 * (n == r) for r in real for n in negatives]
    auc = energy_auc(torch.tensor(real).float(), torch.tensor(negatives).float()).item()
    assert auc == pytest.approx(np.mean(pairs), abs=1e-6)
    truth = np.r_[np.zeros(13), np.ones(17)]
    assert auc == pytest.approx(roc_auc_score(truth, np.r_[real, negatives]), abs=1e-6)


def test_energy_auc_at_its_ends():
    low, high = torch.tensor([-3.0, -2.0]), torch.tensor([1.0, 2.0, 5.0])
    assert energy_auc(low, high) == 1
    assert energy_auc(high, low) == 0
    assert energy_auc(low, low) == 0.5


def test_class_coverage_is_0_for_one_class_and_1_for_all_alike():
    certain = 60 * torch.eye(5)
    assert class_coverage(certain[[2] * 7]).item() == pytest.approx(0, abs=1e-6)
    assert class_coverage(certain).item() == pytest.approx(1)
    assert class_coverage(torch.zeros(3, 5)).item() == pytest.approx(1)  # undecided about every one
    assert class_coverage(certain[[0, 1]]).item() == pytest.approx((2 - 1) / (5 - 1))  # two of five
    assert class_coverage(torch.zeros(4, 1)) == 0  # a single class: nothing to cover


def test_nearest_distance_is_the_median_over_rows_of_the_least_distance_to_another():
    x = torch.randn(31, 2, 3, 3, generator=generator(0, "x"))
    flat = x.flatten(1).double()
    least = [min((flat[i] - flat[j]).norm() for j in range(31) if j != i) for i in range(31)]
    assert nearest_distance(x).item() == pytest.approx(np.median(least), rel=1e-4)
    assert nearest_distance(x[:1]) == 0
    assert nearest_distance(torch.ones(6, 4)) == 0
    assert nearest_distance(torch.tensor([[0.0], [3.0], [4.0]])) == 1


def test_collapsed_images_of_real_size_are_close_to_distance_0():
    """Batches beyond 25 rows take torch.cdist's faster way, which rounds: by far less than limits.distinct allows."""
    real = torch.rand(64, 3, 32, 32, generator=generator(0, "real")) * 2 - 1
    same = real[:1].repeat(64, 1, 1, 1)
    assert nearest_distance(same) / nearest_distance(real) < 0.01


@pytest.mark.parametrize("statistics", ["batch", "shared", "separate"])
@pytest.mark.parametrize(
    "weights",
    [
        LossWeights(class_nll=1.0, marginal=0.7),
        LossWeights(class_nll=2.0, joint=0.5, energy_l2=0.1),
        LossWeights(class_nll=1.0, marginal=0.3, conditional=0.4, discrimination=0.5, energy_l2=0.1),
        LossWeights(class_nll=0.0, marginal=1.0),
    ],
)
def test_the_gradient_norms_of_the_parts_are_those_of_the_parts_alone(weights, statistics):
    norm = "batch" if statistics != "batch" else "none"
    config = CONFIG.with_values(weights=weights, network={"norm": norm, "statistics": statistics})
    state, trainer = prepare(config)
    twin = copy.deepcopy(state)
    real = trainer.streams.real(0)
    negatives, _ = draw_negatives(twin, trainer, real)
    parameters = [p for p in twin.model.parameters() if p.requires_grad]

    def norm_of(gradients):
        return torch.cat([g.flatten() for g in gradients if g is not None]).norm().item()

    twin.model.train()
    batch = trainer.streams.labelled(0)
    loss = jem_loss(twin.model, batch, real, negatives, weights, statistics=statistics)
    parts = {name: torch.autograd.grad(part, parameters, allow_unused=True) for name, part in loss.parts.items()}
    metrics = train_step(state, trainer)
    for name, gradients in parts.items():
        assert metrics[f"grad_{name}"] == pytest.approx(norm_of(gradients), rel=1e-4), name
    assert {name for name in metrics if name.startswith("grad_")} == {f"grad_{name}" for name in parts} | {
        "grad_norm",
        *(["grad_ratio"] if "class" in parts else []),
    }
    zero = [torch.zeros_like(p) for p in parameters]
    whole = [sum((g[i] for g in parts.values() if g[i] is not None), zero[i]) for i in range(len(zero))]
    assert metrics["grad_norm"] == pytest.approx(norm_of(whole), rel=1e-4)
    if "class" in parts:
        others = [w - (zero[i] if parts["class"][i] is None else parts["class"][i]) for i, w in enumerate(whole)]
        assert metrics["grad_ratio"] == pytest.approx(norm_of(others) / norm_of(parts["class"]), rel=1e-4)


def gradients_of(config):
    """Metrics of the first step and the gradient that the optimiser got in it."""
    state, trainer = prepare(config)
    metrics = train_step(state, trainer)
    return metrics, torch.cat([p.grad.flatten() for p in state.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_balance_bounds_the_generative_gradient_and_leaves_that_of_the_class_whole(rho):
    """The gradient is linear in the weights, so each term's can be had by switching the other off."""
    config = CONFIG.with_values(weights={"marginal": 3.0})
    plain, both = gradients_of(config)
    _, of_class = gradients_of(config.with_values(weights=LossWeights()))
    generative = both - of_class
    ratio = generative.norm() / of_class.norm()
    assert plain["grad_ratio"] == pytest.approx(ratio.item(), rel=1e-3)
    bound = 0.25 * ratio.item()  # exceeded four times
    metrics, balanced = gradients_of(config.with_values(optimizer={"balance": bound, "sam_rho": rho}))
    assert metrics["grad_ratio"] == pytest.approx(plain["grad_ratio"], rel=1e-5)  # as it was found
    if rho == 0:
        assert torch.allclose(balanced - of_class, 0.25 * generative, atol=1e-6)
        assert (balanced - of_class).norm() / of_class.norm() == pytest.approx(bound, rel=1e-3)
        _, loose = gradients_of(config.with_values(optimizer={"balance": 4 * ratio.item()}))
        assert torch.allclose(loose, both, atol=1e-6)  # not exceeded: nothing is scaled, up or down
    else:  # the second pass is scaled as the first was: it lies near that of the weights where it started
        assert torch.nn.functional.cosine_similarity(balanced, of_class + 0.25 * generative, dim=0) > 0.95
        assert torch.nn.functional.cosine_similarity(balanced, both, dim=0) < 0.95


WAITS = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "__contains__")


def test_measuring_waits_for_the_device_once(monkeypatch):
    """Of all that reads a tensor's value on the host, `measure` does one thing, once; the step adds nothing to it."""
    config = CONFIG.with_values(
        weights={"conditional": 0.5, "discrimination": 0.2, "energy_l2": 0.1},
        network={"norm": "batch"},
        chains={"max_steps": 5, "buffer_size": 40},
        optimizer={"balance": 0.5, "clip_norm": 1.0},
    )
    state, trainer = prepare(config)
    inside, waits = [], []
    measure = diagnostics.measure

    def measured(*arguments):
        inside.append(True)
        try:
            return measure(*arguments)
        finally:
            inside.pop()

    def counted(name):
        original = getattr(Tensor, name)

        def wait(self, *arguments, **settings):
            waits.append((name, bool(inside)))
            return original(self, *arguments, **settings)

        return wait

    train_step(state, trainer)
    monkeypatch.setattr(loop, "measure", measured)
    gradients = []
    monkeypatch.setattr(loop, "_gradients", noting(loop._gradients, waits, gradients))
    for name in WAITS:
        monkeypatch.setattr(Tensor, name, counted(name))
    metrics = train_step(state, trainer)
    monkeypatch.undo()
    assert [name for name, measuring in waits if measuring] == ["tolist"]
    assert gradients == [0]  # norms of the parts, balance and clipping wait for nothing
    assert len(metrics) > 20


def noting(function, waits, found):
    def wrapped(*arguments, **options):
        before = len(waits)
        result = function(*arguments, **options)
        found.append(len(waits) - before)
        return result

    return wrapped


def test_the_numbers_of_chains_are_what_they_say():
    config = CONFIG.with_values(chains={"restart_rate": 0.0})
    state, trainer = prepare(config)
    for _ in range(4):
        train_step(state, trainer)
    negatives, (move,) = draw_negatives(state, trainer, trainer.streams.real(4))
    real = trainer.streams.real(4).x
    metrics = train_step(state, trainer)
    x = negatives.marginal
    assert metrics["chain_moved"] == pytest.approx((x - move.draw.x).square().mean().sqrt().item(), rel=1e-5)
    assert metrics["chain_age"] == pytest.approx(move.draw.age.float().mean().item())
    assert metrics["chain_age"] > 0
    assert metrics["chain_descent"] == pytest.approx((move.info.energy[0] - move.info.energy[-1]).mean().item())
    assert metrics["saturated"] == pytest.approx((x.abs() == 1).float().mean().item())
    assert metrics["saturated_real"] == pytest.approx((real.abs() >= 1).float().mean().item())
    assert metrics["distinct"] == pytest.approx((nearest_distance(x) / nearest_distance(real)).item())
    assert "clipped" not in metrics
    assert "norm_distance" not in metrics
    assert "chain_steps" not in metrics


@pytest.mark.parametrize(
    ("changes", "there", "missing"),
    [
        ({"weights": LossWeights()}, {"train_accuracy", "grad_class"}, {"energy_real", "chain_age", "grad_ratio"}),
        ({"weights": LossWeights(conditional=1.0)}, {"conditional_gap", "distinct"}, {"energy_gap", "energy_auc"}),
        ({"weights": LossWeights(discrimination=1.0)}, {"discrimination", "energy_gap"}, {"energy_l2"}),
        ({"network": {"norm": "batch"}}, {"norm_distance"}, set()),
        ({"network": {"norm": "group"}}, {"class_coverage", "distinct"}, {"norm_distance"}),
        ({"real_batch_size": 1}, {"energy_gap", "chain_age"}, {"class_coverage", "distinct"}),
        ({"network": {"norm": "batch", "statistics": "shared"}}, {"grad_generative"}, {"norm_distance", "grad_real"}),
        ({"chains": {"kernel": "clipped"}}, {"clipped"}, {"accepted"}),
        ({"chains": {"kernel": "mala"}}, {"accepted"}, {"clipped"}),
    ],
)
def test_a_row_holds_the_numbers_of_what_is_on(changes, there, missing):
    state, trainer = prepare(CONFIG.with_values(**{"chains": {"buffer_size": 40}} | changes))
    metrics = train_step(state, trainer)
    assert there <= metrics.keys()
    assert not missing & metrics.keys()


def test_the_norm_distance_is_there_if_the_network_has_batch_norm_whatever_the_settings_say():
    """As with a network of one's own."""
    state, _ = prepare(CONFIG.with_values(network={"norm": "batch"}))
    _, trainer = prepare()
    assert trainer.recipe.network.norm == "none"
    assert train_step(state, trainer)["norm_distance"] > 0


def coverage(weight, real, negatives):
    """What `measure` says of a linear network whose classes are the axes."""
    network = nn.Linear(3, len(weight), bias=False)
    network.weight = nn.Parameter(weight)
    weights = LossWeights(class_nll=0.0, marginal=1.0)
    batch = Batch(torch.eye(3)[real], torch.zeros(len(real), dtype=torch.int64))
    loss = jem_loss(EnergyClassifier(network), None, batch, Negatives(torch.eye(3)[negatives]), weights)
    metrics = diagnostics.measure(loss, {}, (), batch, CONFIG.with_values(weights=weights), None)
    assert "energy_gap" in metrics
    return metrics.get("class_coverage")


def test_class_coverage_is_relative_to_that_of_the_real_batch():
    """A small batch, or few of many classes, is no collapse."""
    sure = 60 * torch.eye(3)
    assert coverage(sure, [0, 1], [0, 2]) == pytest.approx(1)
    assert coverage(sure, [0, 1], [0, 1, 2]) == pytest.approx(2)
    assert coverage(sure, [0, 1, 2], [0, 0, 0]) == pytest.approx(0, abs=1e-6)
    assert coverage(sure, [0, 0], [1, 1]) < 1  # no division by zero
    assert coverage(sure, [0], [0, 1]) is None
    assert coverage(sure[:1], [0, 1], [0, 2]) is None  # a single class


def test_the_number_of_steps_follows_the_health_of_the_chains(monkeypatch):
    config = CONFIG.with_values(chains={"steps": 2, "max_steps": 4})
    state, trainer = prepare(config)
    used, kept = [], []
    for auc in (0.9, 0.8, 1.0, 0.79, 0.51, 0.5, 0.2, 0.0, 0.8):
        monkeypatch.setattr(diagnostics, "energy_auc", lambda real, negatives, auc=auc: torch.tensor(auc))
        ages = state.buffer.age.clone()
        metrics = train_step(state, trainer)
        used.append(metrics["chain_steps"])
        kept.append(state.chain_steps)
        assert (state.buffer.age - ages).max() == metrics["chain_steps"]
    assert used == [2, 3, 4, 4, 4, 4, 3, 2, 2]
    assert kept == [3, 4, 4, 4, 4, 3, 2, 2, 3]
    saved = state.checkpoint()
    assert saved.header["chain_steps"] == 3
    other, _ = prepare(config)
    assert other.chain_steps == 2
    other.restore(saved)
    assert other.chain_steps == 3


def test_without_a_maximum_the_number_of_steps_stays(monkeypatch):
    monkeypatch.setattr(diagnostics, "energy_auc", lambda real, negatives: torch.tensor(1.0))
    state, trainer = prepare()
    train_step(state, trainer)
    assert state.chain_steps == CONFIG.chains.steps


def test_steps_of_the_classifier_phase_train_the_class_term_alone():
    state, trainer = prepare(CONFIG.with_values(classifier_steps=2))
    alone, alone_trainer = prepare(replace(CONFIG, weights=LossWeights()))
    chains = state.buffer.x.clone()
    for _ in range(2):
        assert train_step(state, trainer) == train_step(alone, alone_trainer)
    assert torch.equal(state.buffer.x, chains)
    assert all(torch.equal(p, q) for p, q in zip(state.model.parameters(), alone.model.parameters(), strict=True))
    assert "energy_gap" in train_step(state, trainer)
    assert not torch.equal(state.buffer.x, chains)
