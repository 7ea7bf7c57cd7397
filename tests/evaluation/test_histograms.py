"""Bins that drop nothing."""

import numpy as np

from jemstone.evaluation.histograms import bins_of, counts


def test_bins_are_half_open_but_for_the_last_and_hold_what_lies_beyond():
    edges = np.array([0.0, 0.5, 1.0])
    values = np.array([-9.0, 0.0, 0.49, 0.5, 0.99, 1.0, 9.0])
    assert bins_of(values, edges).tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert counts(values, edges) == [3, 4]


def test_inside_the_edges_counts_are_numpys():
    values = np.random.default_rng(0).normal(size=1000)
    edges = np.linspace(values.min(), values.max(), 12)
    assert counts(values, edges) == np.histogram(values, edges)[0].tolist()
