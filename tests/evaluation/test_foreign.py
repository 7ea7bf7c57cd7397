"""Foreign sets against what each is said to be, and refusals of what does not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jemstone.data import Dataset
from jemstone.data.dataset import Split
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.foreign import BUILTIN, builtin_ood_sets, foreign_sets

BOX = (-1.0, 1.0)


@pytest.fixture
def images():
    rng = torch.Generator().manual_seed(0)
    return torch.rand(30, 2, 4, 4, generator=rng) * 2 - 1, torch.randint(3, (30,), generator=rng)


def test_sets_made_from_images(images):
    x, y = images
    sets = builtin_ood_sets(x, y, BOX, seed=0)
    assert list(sets) == ["noise", "constant", "inverted", "rotated", "interpolated"]
    for foreign in sets.values():
        assert foreign.shape == x.shape
        assert foreign.dtype == torch.float32
        assert float(foreign.min()) >= -1
        assert float(foreign.max()) <= 1
    assert abs(float(sets["noise"].mean())) < 4 / np.sqrt(3 * x.numel())
    assert float(sets["noise"].var()) == pytest.approx(1 / 3, rel=0.1)
    assert torch.equal(sets["constant"], sets["constant"][:, :, :1, :1].expand_as(x))
    assert len(sets["constant"][:, :, 0, 0].unique()) == 60
    assert torch.equal(sets["inverted"], -x)
    assert torch.equal(sets["rotated"][:, :, 0, 0], x[:, :, 0, 3])


def test_sets_follow_the_seed(images):
    x, y = images
    first, again, other = (builtin_ood_sets(x, y, BOX, seed=s) for s in (0, 0, 1))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name], other[name]) == (name in ("inverted", "rotated"))


def test_the_inversion_is_about_the_centre_of_the_box(images):
    x, y = images
    torch.testing.assert_close(builtin_ood_sets((x + 1) / 2, y, (0.0, 1.0))["inverted"], 1 - (x + 1) / 2)


def test_interpolations_join_different_classes_uniformly():
    labels = torch.tensor([0, 0, 0, 1, 2, 2] * 500)
    x = torch.nn.functional.one_hot(labels).float()
    mixed = builtin_ood_sets(x, labels, None)["interpolated"]
    own = mixed.gather(1, labels[:, None])
    assert torch.equal(own, torch.full_like(own, 0.5))  # never its own class
    with_one = (mixed[labels == 0][:, 1] == 0.5).double().mean()  # class 1 is a third of what is not class 0
    assert abs(float(with_one) - 1 / 3) < 4 * np.sqrt(2 / 9 / 1500)


def test_sets_made_from_vectors():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=rng) * torch.tensor([1.0, 2.0, 5.0]) + torch.tensor([0.0, 10.0, 0.0])
    x[:, 2] = x[:, 0]
    sets = builtin_ood_sets(x, torch.randint(2, (500,), generator=rng), None)
    assert list(sets) == ["noise", "shuffled", "interpolated"]
    spread = (sets["noise"] - x.mean(0)).abs().amax(0) / x.std(0)
    assert bool(((spread > 3.9) & (spread <= 4.0001)).all())
    assert torch.equal(sets["shuffled"].sort(dim=0).values, x.sort(dim=0).values)
    assert abs(float(torch.corrcoef(sets["shuffled"].T)[0, 2])) < 4 / np.sqrt(500)


def test_sets_that_cannot_be_made_are_left_out(images):
    x, y = images
    assert "rotated" not in builtin_ood_sets(x[..., :3], y, BOX)
    assert "interpolated" not in builtin_ood_sets(x, torch.zeros_like(y), BOX)
    assert "shuffled" not in builtin_ood_sets(x.flatten(1)[:, :1], y, None)
    with pytest.raises(ConfigError, match="two or more inputs"):
        builtin_ood_sets(x[:1], y[:1], BOX)


def test_stored_images_become_model_units(images):
    stored = torch.tensor([0, 255, 0, 255], dtype=torch.uint8).reshape(2, 1, 1, 2)
    assert builtin_ood_sets(stored, torch.tensor([0, 1]), BOX)["inverted"].flatten().tolist() == [1, -1, 1, -1]


def dataset(inputs, labels):
    split = Split(inputs, labels)
    return Dataset("toy", split, split, split, ("a", "b", "c"))


@pytest.fixture
def data(images):
    return dataset(*images)


def test_every_built_in_name_is_known(images):
    x, y = images
    made = [*builtin_ood_sets(x, y, BOX), *builtin_ood_sets(x.flatten(1), y, None)]
    assert set(made) == set(BUILTIN)


def test_foreign_sets_are_the_built_in_ones_and_those_handed_in(data):
    stored = torch.arange(2 * 32, dtype=torch.uint8).reshape(2, 2, 4, 4)
    sets, notes = foreign_sets(data, {"mine": stored}, 1000, seed=5)
    made = builtin_ood_sets(data.test.inputs, data.test.labels, BOX, seed=5)
    assert list(sets) == [*made, "mine"]
    assert all(torch.equal(sets[name], x) for name, x in made.items())
    torch.testing.assert_close(sets["mine"], stored / 127.5 - 1)
    assert notes == []


def test_no_set_is_larger_than_the_limit(data, images):
    x = images[0]
    sets, _ = foreign_sets(data, {"mine": x, "yours": x}, 7)
    assert {len(s) for s in sets.values()} == {7}
    rows = [{int((x == one).flatten(1).all(dim=1).nonzero()) for one in sets[name]} for name in ("mine", "yours")]
    assert len(rows[0]) == len(rows[1]) == 7
    assert rows[0] != rows[1]  # each set is drawn from by its own stream
    assert torch.equal(foreign_sets(data, {"mine": x}, 7)[0]["mine"], sets["mine"])


def test_what_cannot_be_made_is_said(images):
    x, y = images
    _, notes = foreign_sets(dataset(x[..., :3], torch.zeros_like(y)), {}, 100)
    assert [note.split("'")[1] for note in notes] == ["rotated", "interpolated"]
    _, notes = foreign_sets(dataset(x.flatten(1)[:, :1], y), {}, 100)
    assert [note.split("'")[1] for note in notes] == ["shuffled"]
    one = Split(x[:1], y[:1])
    sets, notes = foreign_sets(replace(dataset(x, y), test=one), {"mine": x}, 100)
    assert list(sets) == ["mine"]
    assert len(notes) == 1
    assert "two or more test inputs" in notes[0]


@pytest.mark.parametrize("name", ["noise", "", "a/b"])
def test_names_that_cannot_be_told_apart_are_refused(data, name):
    with pytest.raises(ConfigError, match="cannot be called"):
        foreign_sets(data, {name: data.test.inputs}, 100)


def test_sets_that_do_not_fit_are_refused(data):
    for wrong in (torch.zeros(5, 2, 5, 5), torch.zeros(0, 2, 4, 4), torch.zeros(2, 4, 4)):
        with pytest.raises(DataError, match="'mine' has shape"):
            foreign_sets(data, {"mine": wrong}, 100)
    for value in (255.0, -1.01, float("nan")):
        with pytest.raises(DataError, match="leaves the range"):
            foreign_sets(data, {"mine": torch.full((5, 2, 4, 4), value)}, 100)
