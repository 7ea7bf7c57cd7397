import hashlib

import numpy as np
import pytest
import torch

from jemstone.data import UNLABELLED, load_dataset, load_inputs, to_box
from jemstone.errors import ConfigError, DataError


def rows(split):
    return {(row.numpy().tobytes(), int(label)) for row, label in zip(split.inputs, split.labels, strict=True)}


def numbered(n, classes=3):
    """n distinct 4x4 images; image i holds the number i in its first two pixels and has the label i mod classes."""
    images = np.zeros((n, 4, 4), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(n) % 256, np.arange(n) // 256
    return images, np.arange(n) % classes


def save(path, n=60, classes=3, **changes):
    images, labels = numbered(n, classes)
    test_images, test_labels = numbered(12, classes)
    arrays = {
        "train_images": images,
        "train_labels": labels,
        "test_images": test_images,
        "test_labels": test_labels,
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def numbers(split):
    return [int(image[0, 0, 0]) + 256 * int(image[0, 0, 1]) for image in split.inputs]


def test_digits():
    data = load_dataset("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1293, 144, 360)
    assert (data.name, data.input_shape, data.num_classes, data.box) == ("digits", (1, 8, 8), 10, (-1.0, 1.0))
    assert data.class_names == tuple("0123456789")
    for split in (data.train, data.validation, data.test):
        assert split.inputs.dtype == torch.float32
        assert set(split.inputs.unique().tolist()) <= {value / 8 - 1 for value in range(17)}
        share = split.labels.bincount(minlength=10) / len(split)
        assert (share - 0.1).abs().max() < 0.01
    assert (data.train.inputs.min(), data.train.inputs.max()) == (-1, 1)
    assert not rows(data.train) & rows(data.test)
    assert not rows(data.validation) & rows(data.test)
    assert not rows(data.train) & rows(data.validation)
    assert len(rows(data.train) | rows(data.validation) | rows(data.test)) == 1797


def test_digits_test_split_is_the_same_for_ever():
    # A change here makes published numbers incomparable: it must be deliberate.
    test = load_dataset("digits", seed=1, validation=0.2).test
    digest = hashlib.sha256(test.inputs.numpy().tobytes() + test.labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "fda6f10e5d2e05fe"
    assert load_dataset("digits", seed=2).test.inputs.equal(test.inputs)


def test_same_arguments_same_digest_and_seed_moves_only_validation():
    first, again, other = (load_dataset("digits", seed=seed) for seed in (3, 3, 4))
    assert first.digest() == again.digest() != other.digest()
    assert rows(first.validation) != rows(other.validation)
    both = [rows(data.train) | rows(data.validation) for data in (first, other)]
    assert both[0] == both[1]


def test_validation_of_a_source_with_its_own_test_split(tmp_path):
    data = load_dataset(save(tmp_path / "a.npz"), validation=0.1)
    assert (len(data.train), len(data.validation), len(data.test)) == (54, 6, 12)
    assert data.validation.labels.bincount().tolist() == [2, 2, 2]
    assert sorted(numbers(data.train) + numbers(data.validation)) == list(range(60))
    assert numbers(data.test) == list(range(12))
    for split in (data.train, data.validation, data.test):
        assert [number % 3 for number in numbers(split)] == split.labels.tolist()


def test_no_validation(tmp_path):
    data = load_dataset(save(tmp_path / "a.npz"), validation=0.0)
    assert (len(data.train), len(data.validation)) == (60, 0)
    assert numbers(data.train) == list(range(60))
    assert data.validation.inputs.shape == (0, 1, 4, 4)


def test_limit_is_stratified_nested_and_touches_training_only(tmp_path):
    source = save(tmp_path / "a.npz", n=300)
    full = load_dataset(source, seed=5)
    small, large = (load_dataset(source, seed=5, limit=limit) for limit in (30, 90))
    assert (len(small.train), len(large.train)) == (30, 90)
    assert small.train.labels.bincount().tolist() == [10, 10, 10]
    assert set(numbers(small.train)) < set(numbers(large.train)) < set(numbers(full.train))
    assert small.validation.inputs.equal(full.validation.inputs)
    assert small.test.inputs.equal(full.test.inputs)
    assert load_dataset(source, seed=5, limit=1000).digest() == full.digest()
    # Without validation, which moves with the seed too.
    first, other = (load_dataset(source, validation=0.0, seed=seed, limit=30) for seed in (5, 6))
    assert set(numbers(first.train)) != set(numbers(other.train))


def test_limit_that_loses_a_class(tmp_path):
    with pytest.raises(DataError, match=r"limit=2 leaves a class .*train_labels.*Raise the limit"):
        load_dataset(save(tmp_path / "a.npz"), limit=2)


def test_unlabelled_examples_stay_in_train(tmp_path):
    labels = numbered(60)[1]
    labels[20:] = UNLABELLED
    data = load_dataset(save(tmp_path / "a.npz", train_labels=labels), validation=0.5, limit=40)
    assert len(data.validation) == 10
    assert (data.validation.labels >= 0).all()
    assert len(data.train) == 40
    assert (data.train.labels == UNLABELLED).sum() in (31, 32)  # 4 of 5, as without a limit
    assert data.num_classes == 3


def test_too_few_examples_for_validation(tmp_path):
    source = save(tmp_path / "a.npz", n=20, classes=10, test_labels=np.arange(12) % 10)
    with pytest.raises(DataError, match=r"too few examples for a validation split of 0.1 of .*train_labels: 2 of 20"):
        load_dataset(source)
    assert len(load_dataset(source, validation=0.5).validation) == 10


@pytest.mark.parametrize("validation", [-0.1, 1.0, float("nan")])
def test_validation_out_of_range(validation):
    with pytest.raises(ConfigError, match="validation is"):
        load_dataset("digits", validation=validation)


def test_limit_out_of_range():
    with pytest.raises(ConfigError, match="limit is 0"):
        load_dataset("digits", limit=0)


@pytest.mark.parametrize("source", ["mnist", "", "hf:", "no/such/folder"])
def test_unknown_source_lists_what_is_possible(source):
    with pytest.raises(DataError, match=r"neither a known name nor an existing path.*digits, a \.npz file, .*hf:NAME"):
        load_dataset(source)


def test_file_of_an_unknown_kind(tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"data\.csv' is a file of an unknown kind"):
        load_dataset(str(tmp_path / "data.csv"))


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "a.npz")
    assert load_dataset("~/a.npz").name == "a"


class TestInputs:
    def test_are_the_test_split(self):
        assert load_inputs("digits", (1, 8, 8)).equal(load_dataset("digits").test.inputs)

    def test_of_a_set_with_test_only(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
        np.savez(tmp_path / "ood.npz", test_images=images)
        inputs = load_inputs(str(tmp_path / "ood.npz"), (3, 4, 4))
        assert inputs.dtype == torch.float32
        assert inputs.equal(to_box(torch.from_numpy(images).permute(0, 3, 1, 2)))

    def test_grey_to_rgb_repeats(self):
        grey, rgb = load_inputs("digits", (1, 8, 8)), load_inputs("digits", (3, 8, 8))
        assert rgb.equal(grey.expand(-1, 3, -1, -1))

    def test_rgb_to_grey_is_luminance(self, tmp_path):
        images = np.zeros((4, 2, 2, 3), np.float32)
        images[0, ..., 0] = images[1, ..., 1] = images[2, ..., 2] = images[3] = 1
        np.savez(tmp_path / "a.npz", test_images=images)
        grey = load_inputs(str(tmp_path / "a.npz"), (1, 2, 2))
        expected = torch.tensor([0.299, 0.587, 0.114, 1.0]) * 2 - 1
        torch.testing.assert_close(grey, expected[:, None, None, None].expand(4, 1, 2, 2))

    def test_resize(self, tmp_path):
        # Halving a picture of columns 0 and 1: antialiasing makes it grey, plain bilinear sampling would too at 2:1,
        # but at 4:1 only an antialiased filter sees all four pixels.
        images = np.zeros((1, 16, 16), np.float32)
        images[:, :, ::4] = 1
        np.savez(tmp_path / "a.npz", test_images=images)
        small = load_inputs(str(tmp_path / "a.npz"), (1, 4, 4))
        assert small.shape == (1, 1, 4, 4)
        torch.testing.assert_close(small[..., 1:3].mean(), torch.tensor(-0.5), atol=0.02, rtol=0)
        large = load_inputs("digits", (1, 12, 20))
        assert large.shape == (360, 1, 12, 20)
        assert large.min() >= -1
        assert large.max() <= 1

    def test_channels_that_cannot_be_converted(self):
        with pytest.raises(DataError, match=r"digits: images .*\(1, 8, 8\).*\(4, 8, 8\).*Only grey .* and RGB"):
            load_inputs("digits", (4, 8, 8))

    def test_vectors_need_the_moments_of_training(self, tmp_path):
        rng = np.random.default_rng(0)
        train, test, other = (rng.normal(3, 2, (50, 2)) for _ in range(3))
        y = np.arange(50) % 2
        np.savez(tmp_path / "a.npz", train_images=train, train_labels=y, test_images=test, test_labels=y)
        np.savez(tmp_path / "ood.npz", test_images=other)
        data = load_dataset(str(tmp_path / "a.npz"))
        inputs = load_inputs(str(tmp_path / "ood.npz"), (2,), moments=data.moments)
        mean, std = data.moments
        torch.testing.assert_close(inputs.double() * std + mean, torch.from_numpy(other), rtol=1e-5, atol=1e-5)
        with pytest.raises(ConfigError, match="moments"):
            load_inputs(str(tmp_path / "ood.npz"), (2,))
        with pytest.raises(DataError, match="same columns"):
            load_inputs(str(tmp_path / "ood.npz"), (3,), moments=data.moments)
        with pytest.raises(DataError, match="Images cannot be compared with vectors"):
            load_inputs(str(tmp_path / "ood.npz"), (1, 8, 8))

    def test_input_shape(self):
        with pytest.raises(ConfigError, match="input_shape is"):
            load_inputs("digits", (8, 8))
