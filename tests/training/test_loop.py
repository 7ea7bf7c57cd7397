"""The training step: what moves, what does not, and in which mode."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from jemstone.data import Augment, Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.errors import Diverged
from jemstone.networks import build_network
from jemstone.objective import LossWeights
from jemstone.rng import generator
from jemstone.training.config import ChainConfig, Limits, OptimizerConfig, TrainConfig
from jemstone.training.loop import TrainState, draw_negatives, train, train_step
from jemstone.training.setup import Trainer, make_buffer, make_fabric

TINY = TrainConfig(
    steps=6,
    log_every=1,
    batch_size=8,
    real_batch_size=6,
    weights=LossWeights(class_nll=1.0, marginal=1.0),
    chains=ChainConfig(steps=2, buffer_size=20, clamp=True),
    optimizer=OptimizerConfig("sgd", 0.05),
)


def blobs(shape=(1, 4, 4), n: int = 60, classes: int = 2) -> Dataset:
    labels = torch.arange(n) % classes
    noise = torch.randn(n, *shape, generator=generator(0, "blobs")) * 0.1
    x = (noise + (labels.float() * 0.8 - 0.4).view(-1, *[1] * len(shape))).clamp(-1, 1)
    split = Split(x, labels)
    return Dataset("blobs", split, split, split, tuple("abcdef"[:classes]))


def prepare(config: TrainConfig, data: Dataset | None = None, norm: str = "none"):
    data = data or blobs()
    fabric = make_fabric(config.with_values(device="cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network("conv-4-2", data.input_shape, data.num_classes, norm=norm)
    trainer = Trainer.create(data, config, fabric)
    return first_state(EnergyClassifier(network), config, trainer, data, fabric), trainer


def first_state(model, config, trainer, data, fabric):
    buffer = make_buffer(trainer.initial, config, data.num_classes, fabric) if config.weights.generative else None
    return TrainState.create(model, config, buffer, fabric.device)


def snapshot(state: TrainState):
    buffer = None if state.buffer is None else (state.buffer.x.clone(), state.buffer.age.clone())
    models = [state.model] if state.ema is None else [state.model, state.ema]
    tensors = [value.clone() for model in models for value in model.state_dict().values()]
    return tensors, buffer, copy.deepcopy(state.optimizer.state_dict()["state"]), state.step


def same(a, b) -> bool:
    models = all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))  # and their averages
    buffers = a[1] is b[1] is None or all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    momenta = all(torch.equal(a[2][k]["momentum_buffer"], b[2][k]["momentum_buffer"]) for k in a[2])
    return models and buffers and momenta and a[2].keys() == b[2].keys() and a[3] == b[3]


def test_training_lowers_the_loss_and_counts_its_steps():
    state, trainer = prepare(TINY.with_values(steps=60))
    rows = list(train(state, trainer))
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[-1]["class_nll"] < 0.5 * rows[0]["class_nll"]
    assert rows[-1]["epoch"] == pytest.approx(60 * 8 / 60)
    assert rows[-1]["energy_gap"] == pytest.approx(rows[-1]["energy_real"] - rows[-1]["energy_negatives"], abs=1e-5)
    assert 0 <= rows[-1]["saturated"] <= 1
    assert rows[-1]["chain_max"] <= 1


def test_the_same_config_gives_the_same_run():
    def end():
        state, trainer = prepare(TINY.with_values(optimizer={"sam_rho": 0.1}), norm="batch")
        list(train(state, trainer))
        return snapshot(state)

    assert same(end(), end())


@pytest.mark.parametrize("failure", ["energy", "gradient"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_rejected_step_leaves_no_trace(norm, failure):
    sam = 0.1 if failure == "energy" else 0.0  # a gradient that is not finite would already stop SAM's second pass
    config = TINY.with_values(chains={"mode": "train"}, optimizer={"sam_rho": sam, "clip_norm": 1.0}, ema=0.9)
    state, trainer = prepare(config, norm=norm)
    train_step(state, trainer)
    before = snapshot(state)
    if failure == "energy":
        refusing = replace(trainer, recipe=config.with_values(limits=Limits(energy=1e-6)))
        with pytest.raises(Diverged, match="energy") as caught:
            train_step(state, refusing)
    else:  # the loss is healthy; only its gradient, which the optimiser would have used, is not
        hook = next(state.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        with pytest.raises(Diverged, match=r"not finite: first in the gradient of network\.") as caught:
            train_step(state, trainer)
        hook.remove()
        bad = {name for name, value in caught.value.metrics.items() if not abs(value) < 1e6}
        assert bad == {"grad_class", "grad_real", "grad_negatives", "grad_ratio", "grad_norm"}
    assert caught.value.step == 2
    assert same(before, snapshot(state))
    # And so the step can be taken again, as if it had never been tried.
    train_step(state, trainer)
    twin, twin_trainer = prepare(config, norm=norm)
    for _ in range(2):
        train_step(twin, twin_trainer)
    assert same(snapshot(state), snapshot(twin))


@pytest.mark.parametrize("place", ["weight", "chain", "data"])
def test_a_number_that_is_not_one_stops_the_step_wherever_it_is(place):
    data = blobs()
    state, trainer = prepare(TINY.with_values(real_batch_size=20), data)
    with torch.no_grad():
        if place == "weight":
            next(state.model.parameters()).view(-1)[0] = float("nan")
        elif place == "chain":
            state.buffer.x[3] = float("nan")
        else:
            data.train.inputs[:] = float("nan")
    with pytest.raises(Diverged, match="not finite"):
        train_step(state, trainer)
    assert state.step == 0


def test_drawn_slots_hold_the_end_points_and_the_others_do_not_move():
    state, trainer = prepare(TINY.with_values(chains={"restart_rate": 0.0}))
    before = state.buffer.x.clone()
    train_step(state, trainer)
    moved = (state.buffer.x != before).flatten(1).any(dim=1)
    assert moved.sum() == TINY.real_batch_size
    assert torch.equal(state.buffer.age, torch.where(moved, 2, 0))


def test_parameters_take_no_gradient_while_chains_run():
    """The gradient that the optimiser sees is that of the objective alone."""
    state, trainer = prepare(TINY.with_values(weights=LossWeights(marginal=1.0, conditional=1.0)))
    negatives, moves = draw_negatives(state, trainer, trainer.streams.real(0))
    assert len(moves) == 2
    assert not torch.equal(moves[0].x, moves[0].draw.x)  # the chains did run
    assert all(p.grad is None for p in state.model.parameters())
    assert all(p.requires_grad for p in state.model.parameters())
    assert not negatives.marginal.requires_grad
    assert not negatives.conditional.x.requires_grad


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batchnorm_in_chains_behaves_as_the_recipe_says(mode, monkeypatch):
    seen = []
    state, trainer = prepare(TINY.with_values(chains={"mode": mode}), norm="batch")
    norm = next(module for module in state.model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.register_forward_hook(lambda module, inputs, output: seen.append((module.training, len(inputs[0]))))
    train_step(state, trainer)
    chains, outer = seen[:2], seen[2:]
    assert chains == [(mode == "train", 6)] * 2
    assert outer == [(True, 8), (True, 6), (True, 6)]  # labelled, real, negatives: each by its own statistics
    assert norm.num_batches_tracked == 2  # the data: labelled and real


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_running_averages_belong_to_the_data(mode):
    """They are where a model trained on the same batches without any negatives has them."""
    generative, trainer = prepare(TINY.with_values(chains={"mode": mode}), norm="batch")
    train_step(generative, trainer)
    alone, alone_trainer = prepare(TINY, norm="batch")
    alone.model.train()
    alone.model(alone_trainer.streams.labelled(0).x)
    alone.model(alone_trainer.streams.real(0).x)
    for a, b in zip(generative.model.buffers(), alone.model.buffers(), strict=True):
        assert torch.equal(a, b)


def test_the_second_pass_of_sam_leaves_running_statistics_alone():
    with_sam, sam_trainer = prepare(TINY.with_values(optimizer={"sam_rho": 0.1}), norm="batch")
    without, plain_trainer = prepare(TINY, norm="batch")
    train_step(with_sam, sam_trainer)
    train_step(without, plain_trainer)
    for a, b in zip(with_sam.model.buffers(), without.model.buffers(), strict=True):
        assert torch.equal(a, b)
    weights = zip(with_sam.model.parameters(), without.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in weights)


def test_the_average_follows_its_formula():
    state, trainer = prepare(TINY.with_values(ema=0.5))
    first = [p.clone() for p in state.model.parameters()]
    train_step(state, trainer)
    decay = 1 / 10  # early on the average forgets faster: (1 + step) / (10 + step)
    for average, old, new in zip(state.ema.parameters(), first, state.model.parameters(), strict=True):
        assert torch.allclose(average, decay * old + (1 - decay) * new)
    assert state.best is state.ema
    assert not any(p.requires_grad for p in state.ema.parameters())


def test_gradient_clipping_bounds_the_step():
    state, trainer = prepare(TINY.with_values(optimizer={"clip_norm": 1e-3, "momentum": 0.0}))
    before = [p.clone() for p in state.model.parameters()]
    metrics = train_step(state, trainer)
    moved = torch.stack([(p - q).norm() for p, q in zip(state.model.parameters(), before, strict=True)]).norm()
    assert metrics["grad_norm"] > 1e-3
    assert moved.item() == pytest.approx(0.05 * 1e-3, rel=1e-2)


def test_a_plain_classifier_has_no_chains():
    state, trainer = prepare(TINY.with_values(weights=LossWeights()))
    metrics = train_step(state, trainer)
    assert state.buffer is None
    assert "energy_gap" not in metrics
    assert "chain_max" not in metrics


def test_conditional_chains_run_as_the_classes_of_the_real_batch():
    state, trainer = prepare(TINY.with_values(weights=LossWeights(conditional=1.0)))
    metrics = train_step(state, trainer)
    moved = torch.nonzero(state.buffer.age).squeeze(1)
    classes = trainer.streams.real(0).y
    assert sorted((moved % 2).tolist()) == sorted(classes.tolist())
    assert "conditional_gap" in metrics
    assert "energy_gap" not in metrics


def test_unlabelled_examples_feed_the_generative_stream_alone():
    data = blobs()
    hidden = torch.where(torch.arange(60) < 50, -1, data.train.labels)
    data = Dataset("half", Split(data.train.inputs, hidden), data.validation, data.test, data.class_names)
    state, trainer = prepare(TINY.with_values(weights=LossWeights(marginal=1.0, conditional=0.5)), data)
    assert len(trainer.streams.labelled.split) == 10
    assert len(trainer.streams.real.split) == 60
    metrics = list(train(state, trainer))
    assert metrics[-1]["step"] == 6
    real = trainer.streams.real(0)._replace(y=torch.full((6,), -1))
    negatives, moves = draw_negatives(state, trainer, real)
    assert len(negatives.conditional.y) == 0
    assert len(moves) == 1


def test_vectors_train_too():
    state, trainer = prepare_vectors()
    rows = list(train(state, trainer))
    assert rows[-1]["class_nll"] < rows[0]["class_nll"]
    assert "saturated" not in rows[-1]


def prepare_vectors():
    data = blobs(shape=(5,))
    config = TINY.with_values(steps=40, augment=Augment(noise=0.1), optimizer={"learning_rate": 0.02})
    fabric = make_fabric(config)
    model = EnergyClassifier(build_network("mlp-16-1", (5,), 2))
    trainer = Trainer.create(data, config, fabric)
    return first_state(model, config, trainer, data, fabric), trainer
