"""Buffer bookkeeping: every chain comes from where the draw says, and nothing else moves."""

import pytest
import torch

from jemstone.errors import ConfigError
from jemstone.rng import generator
from jemstone.sampling import ReplayBuffer


def marked(value: float):
    """A start that writes its mark and the class it was asked for: (n, 2) = (value, class)."""

    def start(labels, rng):
        return torch.stack([torch.full((len(labels),), value), labels.float()], dim=1)

    return start


def numbered(size: int, classes: int) -> ReplayBuffer:
    """A buffer whose chain i holds (i, its class), of age 100 + i."""
    slots = torch.arange(size)
    return ReplayBuffer(torch.stack([slots.float(), (slots % classes).float()], dim=1), 100 + slots, classes)


def test_create_rounds_up_to_whole_classes_and_starts_each_slot_as_its_class():
    buffer = ReplayBuffer.create(10, marked(7.0), 4, generator(0, "b"))
    assert len(buffer) == 12
    assert torch.equal(buffer.x[:, 1], (torch.arange(12) % 4).float())
    assert torch.equal(buffer.age, torch.zeros(12, dtype=torch.int64))


def test_draw_takes_different_slots_and_says_which():
    buffer = numbered(30, 3)
    draw = buffer.draw(12, generator(1, "draw"), initial=marked(-1.0), restart_rate=0.0)
    assert len(draw.slots.unique()) == 12
    assert torch.equal(draw.x[:, 0], draw.slots.float())
    assert torch.equal(draw.age, 100 + draw.slots)
    assert torch.equal(draw.labels, draw.slots % 3)


def test_every_slot_is_drawn_equally_often():
    buffer = numbered(20, 2)
    counts = torch.zeros(20)
    for i in range(2000):
        counts[buffer.draw(5, generator(i, "draw"), initial=marked(0.0), restart_rate=0.0).slots] += 1
    expected = 2000 * 5 / 20
    assert ((counts - expected) / (expected * 0.75) ** 0.5).abs().max() < 4


def test_restarts_come_from_the_start_of_the_slots_class_at_the_given_rate():
    buffer = numbered(1000, 5)
    draw = buffer.draw(1000, generator(2, "draw"), initial=marked(-1.0), restart_rate=0.2)
    restarted = draw.x[:, 0] == -1
    assert abs(restarted.sum().item() - 200) < 4 * (1000 * 0.2 * 0.8) ** 0.5
    assert torch.equal(draw.x[restarted, 1], draw.labels[restarted].float())
    assert torch.equal(draw.age == 0, restarted)
    assert torch.equal(draw.x[~restarted, 0], draw.slots[~restarted].float())


def test_draw_by_class_takes_that_classes_slots_once_each():
    buffer = numbered(40, 4)
    labels = torch.tensor([3, 0, 3, 3, 1, 0])
    draw = buffer.draw(6, generator(3, "draw"), initial=marked(0.0), restart_rate=0.0, labels=labels)
    assert torch.equal(draw.labels, labels)
    assert torch.equal(draw.slots % 4, labels)
    assert len(draw.slots.unique()) == 6


def test_drawing_moves_nothing():
    buffer = numbered(20, 2)
    before = buffer.x.clone()
    draw = buffer.draw(10, generator(4, "draw"), initial=marked(-1.0), restart_rate=0.5)
    draw.x.add_(99.0)
    assert torch.equal(buffer.x, before)
    assert torch.equal(buffer.age, 100 + torch.arange(20))


def test_store_puts_end_points_where_they_came_from_and_ages_them():
    buffer = numbered(20, 2)
    draw = buffer.draw(6, generator(5, "draw"), initial=marked(-1.0), restart_rate=0.5)
    ends = torch.randn(6, 2)
    buffer.store(draw, ends, steps=7)
    assert torch.equal(buffer.x[draw.slots], ends)
    assert torch.equal(buffer.age[draw.slots], draw.age + 7)
    others = torch.ones(20, dtype=torch.bool)
    others[draw.slots] = False
    assert torch.equal(buffer.x[others, 0], torch.arange(20.0)[others])
    assert torch.equal(buffer.age[others], 100 + torch.arange(20)[others])


def test_store_leaves_out_what_is_not_kept():
    buffer = numbered(10, 2)
    draw = buffer.draw(4, generator(6, "draw"), initial=marked(0.0), restart_rate=0.0)
    keep = torch.tensor([True, False, True, False])
    buffer.store(draw, torch.full((4, 2), -5.0), steps=1, keep=keep)
    assert torch.equal(buffer.x[draw.slots, 0] == -5, keep)
    assert torch.equal(buffer.age[draw.slots] == draw.age + 1, keep)


def test_too_many_chains_are_refused():
    buffer = numbered(10, 5)
    with pytest.raises(ConfigError, match="enlarge the buffer"):
        buffer.draw(11, generator(0, "draw"), initial=marked(0.0), restart_rate=0.0)
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ConfigError, match="of one class"):
        buffer.draw(3, generator(0, "draw"), initial=marked(0.0), restart_rate=0.0, labels=labels)
    with pytest.raises(ConfigError, match="divide"):
        ReplayBuffer(torch.zeros(10, 2), torch.zeros(10, dtype=torch.int64), 3)


def test_restart_starts_the_chosen_chains_anew_as_their_classes_and_no_others():
    buffer = numbered(20, 4)
    which = torch.zeros(20, dtype=torch.bool)
    which[[2, 7, 15]] = True
    buffer.restart(which, marked(-1.0), generator(0, "restart"))
    assert torch.equal(buffer.x[:, 0] == -1, which)
    assert torch.equal(buffer.x[:, 1], (torch.arange(20) % 4).float())
    assert torch.equal(buffer.age, torch.where(which, 0, 100 + torch.arange(20)))


def test_restarting_nothing_draws_nothing():
    buffer, rng = numbered(8, 2), generator(0, "restart")

    def start(labels, rng):
        raise AssertionError("asked for a start")

    buffer.restart(torch.zeros(8, dtype=torch.bool), start, rng)
    assert torch.equal(buffer.age, 100 + torch.arange(8))


def test_restart_is_determined_by_its_generator():
    def start(labels, rng):
        return torch.randn(len(labels), 2, generator=rng)

    one, two, other = numbered(8, 2), numbered(8, 2), numbered(8, 2)
    for buffer, seed in ((one, 0), (two, 0), (other, 1)):
        buffer.restart(torch.arange(8) < 4, start, generator(seed, "restart"))
    assert torch.equal(one.x, two.x)
    assert not torch.equal(one.x, other.x)
