import numpy as np
import pytest
import torch

from jemstone.data import load_dataset, load_inputs, to_box
from jemstone.data.validate import channel_axis
from jemstone.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 4, 5), dtype=np.uint8)
LABELS = np.arange(40) % 4


@pytest.fixture
def load(tmp_path):
    def go(**changes):
        arrays = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:9], "test_labels": LABELS[:9]}
        arrays |= changes
        np.savez(tmp_path / "set.npz", **{name: array for name, array in arrays.items() if array is not None})
        return load_dataset(str(tmp_path / "set.npz"))

    return go


def test_grey_images(load):
    data = load()
    assert data.name == "set"
    assert data.input_shape == (1, 4, 5)
    assert data.train.inputs.dtype == torch.uint8
    assert data.test.inputs.equal(torch.from_numpy(IMAGES[:9, None]))
    assert data.test.labels.tolist() == LABELS[:9].tolist()
    assert data.class_names == ("0", "1", "2", "3")
    assert data.moments is None


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((40, 6, 5, 3), (3, 6, 5)),
        ((40, 6, 5, 1), (1, 6, 5)),
        ((40, 3, 6, 5), (3, 6, 5)),
        ((40, 1, 6, 5), (1, 6, 5)),
        ((40, 6, 5, 4), (4, 6, 5)),
        ((40, 4, 6, 5), (4, 6, 5)),
        ((40, 3, 5, 3), (3, 3, 5)),  # both could be: the last wins
    ],
)
def test_layouts(load, shape, expected):
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    data = load(train_images=images, test_images=images[:9])
    assert data.input_shape == expected
    moved = np.moveaxis(images, 1 if shape[1:] == expected else 3, 1)
    assert data.test.inputs.equal(torch.from_numpy(moved[:9].copy()))


def test_layout_that_cannot_be_told(load):
    assert channel_axis((9, 32, 32, 3)) == 3
    with pytest.raises(DataError, match=r"train_images: Which axis of shape \(40, 4, 4, 4\)"):
        load(train_images=np.zeros((40, 4, 4, 4), np.uint8))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images(load, dtype):
    data = load(train_images=(IMAGES / 255).astype(dtype), test_images=(IMAGES[:9] / 255).astype(dtype))
    assert data.test.inputs.dtype == torch.float32
    atol = 1e-3 if dtype == np.float16 else 1e-6
    torch.testing.assert_close(data.test.inputs, to_box(torch.from_numpy(IMAGES[:9, None])), atol=atol, rtol=0)


def test_class_names(load):
    assert load(class_names=np.array(["a", "b", "c", "d"])).class_names == ("a", "b", "c", "d")
    assert load(class_names=np.array([b"a", b"b", b"c", b"d"])).class_names == ("a", "b", "c", "d")


def test_vectors_are_standardised_by_the_training_split(load):
    rng = np.random.default_rng(2)
    train, test = rng.normal([5, -1e6, 0], [3, 10, 1], (40, 3)), rng.normal([5, -1e6, 0], [3, 10, 1], (9, 3))
    train[:, 2], test[:, 2] = 0.1, 2.1
    data = load(train_images=train, test_images=test)
    assert data.input_shape == (3,)
    assert data.box is None
    x = data.train.inputs
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x[:, :2].std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    assert (x[:, 2] == 0).all()
    torch.testing.assert_close(data.test.inputs[:, 2], torch.full((9,), 2.0))
    mean, std = data.moments
    torch.testing.assert_close(data.test.inputs.double() * std + mean, torch.from_numpy(test), rtol=1e-6, atol=1e-5)
    # The validation split takes no part in the moments.
    assert not torch.allclose(mean[:2], torch.from_numpy(train).mean(0)[:2], rtol=1e-9, atol=0)


NAN = np.where(np.arange(40)[:, None, None] == 7, np.nan, 0.5) * np.ones((40, 4, 5))
CASES = {
    "missing arrays": (
        {"train_labels": None, "test_labels": None, "x": LABELS},
        r"no array train_labels, test_labels; it holds: train_images, test_images, x\..*Rename",
    ),
    "integers": ({"train_images": IMAGES.astype(np.int64)}, r"train_images has type int64.*convert"),
    "booleans": ({"test_images": IMAGES[:9] > 9}, r"test_images has type bool.*convert"),
    "strings": ({"train_images": np.array(["a"] * 40)}, r"train_images has type <U1.*convert"),
    "complex": ({"train_images": IMAGES.astype(complex)}, r"train_images has type complex128.*convert"),
    "one axis": ({"train_images": IMAGES[:, 0, 0]}, r"train_images has shape \(40,\).*3 or 4 axes.*reshape"),
    "five axes": ({"train_images": IMAGES[..., None, None]}, r"train_images has shape \(40, 4, 5, 1, 1\)"),
    "scalar": ({"train_images": np.uint8(3)}, r"train_images has shape \(\)"),
    "uint8 vectors": ({"train_images": IMAGES[:, 0]}, r"train_images has shape \(40, 5\) and type uint8.*astype"),
    "no examples": ({"test_images": IMAGES[:0], "test_labels": LABELS[:0]}, r"test_images is empty"),
    "no pixels": ({"train_images": IMAGES[:, :0]}, r"train_images is empty: its shape is \(40, 0, 5\)"),
    "NaN": ({"train_images": NAN}, r"train_images holds 20 values that are NaN or inf.*example 7\. Remove"),
    "infinite": ({"test_images": np.full((9, 3), np.inf)}, r"test_images holds 27 values that are NaN or infinite"),
    "beyond float32": ({"train_images": np.full((40, 3), 1e300)}, r"train_images holds 120 values"),
    "floats in [0, 255]": ({"train_images": IMAGES * 1.0}, r"train_images holds floats from 0 to 255.*Divide by 255"),
    "floats in [-1, 1]": ({"train_images": IMAGES / 127.5 - 1}, r"train_images holds floats from -1 to 1.*x \+ 1"),
    "shapes differ": (
        {"test_images": IMAGES[:9, :3]},
        r"train_images .*\(1, 4, 5\),.*test_images .*\(1, 3, 5\).*resize",
    ),
    "kinds differ": ({"test_images": np.ones((9, 4))}, r"train_images .*\(1, 4, 5\),.*test_images .*\(4,\)"),
    "label type": ({"train_labels": LABELS * 1.0}, r"train_labels has type float64.*integers.*astype"),
    "label shape": ({"train_labels": LABELS[:, None]}, r"train_labels has shape \(40, 1\).*reshape"),
    "label count": ({"test_labels": LABELS[:8]}, r"test_labels holds 8 labels for 9 inputs"),
    "negative label": ({"train_labels": LABELS - 2}, r"train_labels holds the label -2.*unlabelled"),
    "unlabelled test": ({"test_labels": LABELS[:9] - 1}, r"test_labels holds the label -1.*no unlabelled here"),
    "test label": ({"test_labels": LABELS[:9] + 1}, r"test_labels holds the label 4, and there are 4 classes.*below 4"),
    "huge label": ({"train_labels": np.uint64(2**64 - 1) - LABELS.astype(np.uint64)}, r"train_labels holds the label"),
    "too few names": ({"class_names": np.array(["a", "b"])}, r"train_labels holds the label 3, and there are 2"),
    "too many names": ({"class_names": np.array(list("abcde"))}, r"train_labels: class 'e' has no training example"),
    "names repeat": ({"class_names": np.array(list("abca"))}, r"class names repeat"),
    "names not strings": ({"class_names": np.arange(4)}, r"class_names has shape \(4,\) and type int64.*strings"),
    "empty class": ({"train_labels": np.where(LABELS == 1, 0, LABELS)}, r"train_labels: class 1 has no training"),
    "far label": ({"train_labels": np.where(LABELS == 3, 10**15, LABELS)}, r"train_labels: class 3 has no training"),
    "all unlabelled": ({"train_labels": np.full(40, -1)}, r"train_labels: every training example is unlabelled"),
    "objects": ({"train_images": np.array([{}] * 40)}, r"train_images holds Python objects.*runs code.*Store"),
    "object names": ({"class_names": np.array(["a", None], object)}, r"class_names holds Python objects"),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_name_the_array_and_the_remedy(load, case):
    arrays, message = CASES[case]
    with pytest.raises(DataError, match=message) as caught:
        load(**arrays)
    assert "set.npz" in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"There is no file .*none\.npz"):
        load_dataset(str(tmp_path / "none.npz"))


def test_truncated_anywhere(load, tmp_path):
    load()
    path = tmp_path / "set.npz"
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"set\.npz cannot be read as \.npz.*truncated"):
            load_dataset(str(path))


@pytest.mark.parametrize("saver", [np.savez, np.savez_compressed])
def test_flipped_bytes_never_load_other_pixels(tmp_path, saver):
    path = tmp_path / "set.npz"
    saver(path, train_images=IMAGES, train_labels=LABELS, test_images=IMAGES[:9], test_labels=LABELS[:9])
    digest = load_dataset(str(path)).digest()
    whole = bytearray(path.read_bytes())
    refused = 0
    for position in range(0, len(whole), max(1, len(whole) // 150)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            loaded = load_dataset(str(path)).digest()
        except DataError:
            refused += 1
        else:
            assert loaded == digest  # the byte was part of a time stamp or the like
    assert refused > 30


def test_a_pickle_in_disguise_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "set.npz").write_bytes(b"cos\nmkdir\n(V%s\ntR." % str(marker).encode())
    with pytest.raises(DataError, match=r"set\.npz"):
        load_dataset(str(tmp_path / "set.npz"))
    assert not marker.exists()


def test_a_single_array_is_not_a_set(tmp_path):
    with (tmp_path / "set.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(DataError, match="holds a single array"):
        load_dataset(str(tmp_path / "set.npz"))


def test_inputs_need_test_images(tmp_path):
    np.savez(tmp_path / "set.npz", train_images=IMAGES, train_labels=LABELS)
    with pytest.raises(DataError, match="no array test_images; it holds: train_images, train_labels"):
        load_inputs(str(tmp_path / "set.npz"), (1, 4, 5))
