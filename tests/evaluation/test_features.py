"""Moments against numpy, and the cache of a split's statistics."""

from functools import reduce

import numpy as np
import pytest
import torch

from jemstone.data import Dataset, Split
from jemstone.errors import DataError
from jemstone.evaluation.extractors import Extractor
from jemstone.evaluation.features import cache_folder, features_of, merged, moments_of, reference
from jemstone.evaluation.section import Work


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(83, 6)) @ np.diag([1, 2, 3, 4, 5, 6])


def agrees(moments, rows, **how):
    rows = rows.astype(np.float64)
    assert moments.n == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), **how)
    np.testing.assert_allclose(moments.covariance, np.cov(rows, rowvar=False), **how)


def test_moments_are_those_of_numpy(rows):
    agrees(moments_of(rows), rows, rtol=1e-12)


@pytest.mark.parametrize("cuts", [[40], [1], [82], [1, 2, 3], [10, 10 + 1, 50, 70]])
def test_merging_pieces_is_exact(rows, cuts):
    agrees(reduce(merged, [moments_of(part) for part in np.split(rows, cuts)]), rows, rtol=1e-11, atol=1e-11)


def test_merging_keeps_its_digits_far_from_zero(rows):
    far = rows + 1e7
    agrees(reduce(merged, [moments_of(part) for part in np.split(far, [20, 45])]), far, rtol=1e-8, atol=1e-6)


def test_one_row_has_no_covariance(rows):
    assert not moments_of(rows[:1]).covariance.any()


def make_data(n=2300, shift=0):
    x = torch.randint(0, 256, (n, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(shift))
    train, test = (
        Split(x[:-40], torch.zeros(n - 40, dtype=torch.long)),
        Split(x[-40:], torch.zeros(40, dtype=torch.long)),
    )
    return Dataset("made", train, test, test, ("a",))


class Counting:
    """Flattened pixels, and how many images were asked for."""

    def __init__(self):
        self.images = 0
        self.extractor = Extractor("counting", self, 700)

    def __call__(self, images):
        from jemstone.evaluation.extractors import Features

        self.images += len(images)
        return Features(images.flatten(1))


def test_reference_is_the_whole_split_and_keeps_the_rows_that_it_names(tmp_path):
    data, counting = make_data(), Counting()
    found = reference(counting.extractor, data, "train", 500, folder=tmp_path, work=Work())
    pool = features_of(counting.extractor, data.train.inputs).pool
    agrees(found.moments, pool, rtol=1e-6, atol=1e-9)
    assert len(found.pool) == 500
    assert (np.diff(found.chosen) > 0).all()
    np.testing.assert_array_equal(found.pool, pool[found.chosen])
    everything = reference(counting.extractor, data, "test", 500, folder=tmp_path, work=Work())
    np.testing.assert_array_equal(everything.pool, features_of(counting.extractor, data.test.inputs).pool)


def test_reference_is_made_once_and_anew_for_whatever_it_depends_on(tmp_path):
    counting = Counting()

    def made(data, split="train", count=10, extractor=counting.extractor):
        before = counting.images
        found = reference(extractor, data, split, count, folder=tmp_path, work=Work())
        return found, counting.images > before

    data = make_data()
    first, again = made(data), made(data)
    assert (first[1], again[1]) == (True, False)
    assert first[0].moments.n == again[0].moments.n
    for a, b in zip((*first[0].moments[1:], *first[0][1:]), (*again[0].moments[1:], *again[0][1:]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert made(make_data(shift=1))[1]
    assert made(data, split="test")[1]
    assert made(data, count=11)[1]
    assert made(data, extractor=Extractor("other", counting, 700))[1]


def test_a_damaged_cache_is_made_anew(tmp_path):
    data, counting = make_data(), Counting()
    whole = reference(counting.extractor, data, "train", 10, folder=tmp_path, work=Work())
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for damage in (b"", content[: len(content) // 2], content[:-100] + bytes(100), b"x" * 1000):
        file.write_bytes(damage)
        seen = counting.images
        again = reference(counting.extractor, data, "train", 10, folder=tmp_path, work=Work())
        assert counting.images > seen
        np.testing.assert_array_equal(again.moments.covariance, whole.moments.covariance)
        assert file.read_bytes() == content


def test_where_nothing_can_be_written_it_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = []
    reference(Counting().extractor, make_data(), "test", 10, folder=tmp_path / "file", work=Work(say=said.append))
    assert "not kept" in said[-1]


def test_a_killed_reference_goes_on(tmp_path):
    data, counting, stored = make_data(), Counting(), {}

    def memo(name, make):
        if name not in stored:
            if len(stored) == 2:
                raise KeyboardInterrupt
            stored[name] = make()
        return stored[name]

    with pytest.raises(KeyboardInterrupt):
        reference(counting.extractor, data, "train", 10, folder=tmp_path, work=Work(memo=memo))
    assert counting.images == 2000
    assert not list(tmp_path.iterdir())
    found = reference(
        counting.extractor, data, "train", 10, folder=tmp_path, work=Work(memo=lambda n, make: stored.get(n) or make())
    )
    assert counting.images == len(data.train)
    agrees(found.moments, features_of(counting.extractor, data.train.inputs).pool, rtol=1e-6, atol=1e-9)


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("JEMSTONE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    reference(Counting().extractor, make_data(), "test", 10, work=Work())
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.delenv("JEMSTONE_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "jemstone")


def test_nothing_has_no_features():
    with pytest.raises(DataError, match="No images"):
        features_of(Counting().extractor, torch.zeros(0, 1, 2, 2))
