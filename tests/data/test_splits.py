import numpy as np
import pytest
import torch

from jemstone.data import Split
from jemstone.data.splits import hold_out, stratified_order
from jemstone.errors import DataError
from jemstone.rng import generator

LABELS = np.array([0] * 60 + [1] * 30 + [2] * 10)


def test_order_is_a_permutation_and_every_prefix_is_stratified():
    order = stratified_order(LABELS, generator(0, "t"))
    assert sorted(order) == list(range(100))
    for k in range(3, 101):
        counts = np.bincount(LABELS[order[:k]], minlength=3)
        assert counts.min() >= 1
        # Shares are equal to within one example of each class.
        assert np.ptp((counts - 0.5) / [60, 30, 10]) <= 1 / 10


def test_order_depends_on_the_generator_alone():
    first, again, other = (stratified_order(LABELS, generator(seed, "t")) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_order_within_a_class_is_uniform():
    # Every example of a class is as likely as any other to come first: 20 examples, 2,000 seeds.
    labels = np.array([0] * 20 + [1] * 5)
    firsts = np.array([stratified_order(labels, generator(seed, "t"))[:2].min() for seed in range(2000)])
    counts = np.bincount(firsts, minlength=20)[:20]
    chi2 = ((counts - 100) ** 2 / 100).sum()
    assert chi2 < 19 + 4 * np.sqrt(2 * 19)


def test_hold_out_is_disjoint_complete_and_exact():
    kept, held = hold_out(LABELS, 17, generator(0, "t"), what="x", remedy="y")
    assert len(held) == 17
    assert sorted([*kept, *held]) == list(range(100))


def test_hold_out_never_takes_unlabelled_examples():
    labels = np.array([-1, 0, -1, 1] * 10)
    kept, held = hold_out(labels, 10, generator(0, "t"), what="x", remedy="y")
    assert (labels[held] >= 0).all()
    assert (labels[kept] == -1).sum() == 20


@pytest.mark.parametrize(("labels", "count"), [([0, 0, 0, 1], 2), ([0, 0, 1, 1], 1), ([0, 0, 1, 1], 4)])
def test_hold_out_refuses_to_lose_a_class(labels, count):
    with pytest.raises(DataError, match=r"too few examples for a split.*Do this\."):
        hold_out(np.array(labels), count, generator(0, "t"), what="a split", remedy="Do this.")


@pytest.mark.parametrize(("count", "rows"), [(3, [0, 4, 9]), (2, [0, 9]), (10, list(range(10))), (99, list(range(10)))])
def test_a_spread_reaches_from_the_first_example_to_the_last(count, rows):
    split = Split(torch.arange(10.0)[:, None], torch.arange(10) % 3)
    few = split.spread(count)
    assert few.inputs.flatten().tolist() == rows
    assert few.labels.tolist() == [row % 3 for row in rows]
