"""Streams follow from their position and from nothing else."""

import torch

from jemstone.rng import generator, seeded


def numbers(*position):
    return torch.rand(4, generator=generator(*position))


def test_a_position_has_one_stream():
    assert torch.equal(numbers(0, "chains", 5), numbers(0, "chains", 5))
    different = [numbers(0, "chains", 5), numbers(0, "chains", 6), numbers(1, "chains", 5), numbers(0, "order", 5)]
    assert len({tuple(d.tolist()) for d in different}) == 4


def test_neighbouring_text_does_not_run_together():
    assert not torch.equal(numbers(0, "a", 12), numbers(0, "a1", 2))


def test_seeded_sets_the_global_stream_and_gives_it_back():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    with seeded(1, "dropout", 3):
        first = torch.rand(3)
    with seeded(1, "dropout", 3):
        second = torch.rand(3)
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)
