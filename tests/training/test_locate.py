"""Where a number went bad: planted at every place of a step, and named before what it caused."""

from dataclasses import replace

import pytest
import torch
from test_diagnostics import CONFIG, prepare

from jemstone.errors import Diverged
from jemstone.objective import LossWeights
from jemstone.training.locate import require_finite
from jemstone.training.loop import draw_negatives, train_step
from jemstone.training.setup import Streams

NAN = float("nan")
EVERY_CHAIN = CONFIG.with_values(real_batch_size=20, chains={"buffer_size": 20, "restart_rate": 0.0})


def named(state, trainer):
    """Where the failure of a step is said to have begun; what it did is taken back."""
    step = state.step
    with pytest.raises(Diverged, match=r"a number is not finite: first in .*, then in ") as caught:
        train_step(state, trainer)
    assert caught.value.verdict == "non_finite"
    assert caught.value.step == step + 1
    assert state.step == step
    return caught.value.reason.partition("first in ")[2].partition(", then in ")[0]


class Spoiled:
    """A stream with NaN in some rows of every batch."""

    def __init__(self, stream, rows):
        self.stream, self.rows = stream, rows

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __call__(self, step):
        batch = self.stream(step)
        x = batch.x.clone()
        x[self.rows] = NAN
        return batch._replace(x=x)


def spoiled(trainer, *, labelled=(), real=()):
    streams = Streams(Spoiled(trainer.streams.labelled, list(labelled)), Spoiled(trainer.streams.real, list(real)))
    return replace(trainer, streams=streams)


def test_each_place_is_named_and_causes_come_before_their_effects():
    """Everything is spoiled at once; what was named is mended, and the next place in the order of causes is named."""
    state, trainer = prepare(EVERY_CHAIN)
    parameters = dict(state.model.named_parameters())
    name, weight = next(iter(parameters.items()))
    whole = weight.detach().clone()
    hook = parameters[name].register_hook(lambda gradient: gradient * NAN)
    chain = state.buffer.x[7].clone()
    with torch.no_grad():
        weight.view(-1)[0] = NAN
    state.buffer.x[7] = NAN
    assert named(state, spoiled(trainer, labelled=[2, 5], real=[1])) == "the labelled batch, rows [2, 5]"
    assert named(state, spoiled(trainer, real=[1])) == "the real batch, rows [1]"
    assert named(state, trainer) == f"the weights {name}"
    with torch.no_grad():
        weight.copy_(whole)
    assert named(state, trainer) == "the buffer, slots [7]"
    state.buffer.x[7] = chain
    assert named(state, trainer) == f"the gradient of {name}"
    hook.remove()
    assert train_step(state, trainer)["step"] == 1


@pytest.mark.parametrize("kernel_step", [0, 2])
def test_an_energy_that_overflows_is_named_with_the_step_of_the_kernel(kernel_step):
    state, trainer = prepare(EVERY_CHAIN)
    calls = []

    def overflow(module, inputs, output):
        if not module.training:  # chains run in evaluation mode
            calls.append(len(calls))
            return output * torch.inf if calls[-1] == kernel_step else output
        return output

    hook = state.model.register_forward_hook(overflow)
    assert named(state, trainer) == f"the energy of chains, at kernel step {kernel_step} of 3"
    hook.remove()


def test_a_last_step_that_leaves_the_numbers_is_named_by_its_chains():
    state, trainer = prepare(EVERY_CHAIN)
    calls = []

    def steep(module, inputs, output):
        if not module.training:
            calls.append(len(calls))
            if calls[-1] == 2:
                kept = torch.ones(20, 1)
                kept[4] = NAN
                output.register_hook(lambda gradient: gradient * kept)
        return output

    hook = state.model.register_forward_hook(steep)
    assert named(state, trainer) == "the end points of chains [4]"
    hook.remove()


def test_slots_are_those_of_the_buffer_and_not_rows_of_the_draw():
    state, trainer = prepare(CONFIG.with_values(chains={"restart_rate": 0.0}))
    state.buffer.x[[3, 11, 17]] = NAN
    slots = trainer_slots(state, trainer)
    assert named(state, trainer) == f"the buffer, slots {[slot for slot in slots if slot in (3, 11, 17)]}"


def trainer_slots(state, trainer):
    _, (move,) = draw_negatives(state, trainer, trainer.streams.real(0))
    return move.draw.slots.tolist()


def test_a_weight_is_named_and_not_the_attack_that_it_spoils():
    """Adversarial examples of good images by a bad model are not finite: the images were."""
    state, trainer = prepare(CONFIG.with_values(weights=LossWeights(), attack={"radius": 0.5, "steps": 2}))
    name, weight = next(iter(state.model.named_parameters()))
    with torch.no_grad():
        weight.view(-1)[0] = NAN
    assert named(state, trainer) == f"the weights {name}"


@pytest.mark.parametrize("statistics", ["batch", "shared", "separate"])
def test_a_chain_is_named_and_not_the_running_averages_that_it_spoils(statistics):
    """A failing step takes back what it did to running averages: they were good when it began."""
    config = EVERY_CHAIN.with_values(network={"norm": "batch", "statistics": statistics}, chains={"mode": "train"})
    state, trainer = prepare(config)
    state.buffer.x[7] = NAN
    assert named(state, trainer) == "the buffer, slots [7]"
    state.buffer.x[7] = 0.0
    name, average = next((n, b) for n, b in state.model.named_buffers() if n.endswith("running_var"))
    train_step(state, trainer)
    average[0] = NAN
    evaluating = replace(trainer, recipe=config.with_values(chains={"mode": "eval"}))
    if statistics != "separate":  # there chains have averages of their own
        assert named(state, evaluating) == f"the weights {name}"


def test_weights_are_looked_at_before_they_are_saved():
    state, _ = prepare()
    require_finite(7, state.model, {"loss": 1.0})
    name, weight = list(state.model.named_parameters())[1]
    with torch.no_grad():
        weight.view(-1)[0] = torch.inf
    with pytest.raises(Diverged, match=f"the weights {name} are not finite after the step") as caught:
        require_finite(7, state.model, {"loss": 1.0})
    assert (caught.value.verdict, caught.value.step) == ("non_finite", 7)


def test_a_number_that_is_not_finite_comes_with_the_steps_before_it_and_names_few_of_its_effects():
    state, trainer = prepare(EVERY_CHAIN)
    for _ in range(3):
        train_step(state, trainer)
    with pytest.raises(Diverged) as caught:
        train_step(state, spoiled(trainer, labelled=[2]))
    assert caught.value.evidence["step"] == [1, 2, 3]
    assert all(value is not None for value in caught.value.evidence["energy_gap"])
    effects = caught.value.reason.partition(", then in ")[2]
    assert effects.startswith("loss, ")
    assert effects.count(",") == 2
    assert effects.endswith(" and more")
