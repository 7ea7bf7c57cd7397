import pickle

import numpy as np
import pytest
import torch

from jemstone.data import load_dataset, load_inputs, to_box
from jemstone.errors import DataError

NAMES = ["cat", "dog", "eel"]


def batch(first, n, classes=3, key=b"labels"):
    """A batch in the official layout, of n images with the numbers from `first` in their first red pixel."""
    pixels = np.random.default_rng(first).integers(0, 256, (n, 3072), dtype=np.uint8)
    pixels[:, 0] = np.arange(first, first + n)
    return {b"batch_label": b"", b"data": pixels, key: [i % classes for i in range(first, first + n)]}


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10(folder):
    for i in range(5):
        dump(folder / f"data_batch_{i + 1}", batch(12 * i, 12))
    dump(folder / "test_batch", batch(100, 9))
    dump(folder / "batches.meta", {b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072})
    return folder


def write_cifar100(folder):
    for name, first, n in (("train", 0, 60), ("test", 100, 9)):
        dump(folder / name, batch(first, n, key=b"fine_labels") | {b"coarse_labels": [0] * n, b"filenames": [b"x"] * n})
    dump(folder / "meta", {b"fine_label_names": [name.encode() for name in NAMES], b"coarse_label_names": [b"animal"]})
    return folder


@pytest.fixture
def cifar10(tmp_path):
    return write_cifar10(tmp_path / "cifar-10-batches-py")


def first_pixels(split):
    return split.inputs[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("write", "folder", "name"),
    [(write_cifar10, "cifar-10-batches-py", "cifar-10"), (write_cifar100, "cifar-100-python", "cifar-100")],
)
@pytest.mark.parametrize("parent", [False, True])
def test_official_layout(tmp_path, write, folder, name, parent):
    write(tmp_path / folder)
    source = str(tmp_path if parent else tmp_path / folder)
    data = load_dataset(source, validation=0.1)
    assert (data.name, data.class_names, data.input_shape) == (name, tuple(NAMES), (3, 32, 32))
    assert (len(data.train), len(data.validation), len(data.test)) == (54, 6, 9)
    assert sorted(first_pixels(data.train) + first_pixels(data.validation)) == list(range(60))
    for split in (data.train, data.validation, data.test):
        assert [number % 3 for number in first_pixels(split)] == split.labels.tolist()
    stored = batch(100, 9)[b"data"]
    assert data.test.inputs.equal(torch.from_numpy(stored).reshape(9, 3, 32, 32))
    assert load_inputs(source, (3, 32, 32)).equal(to_box(data.test.inputs))


def test_renamed_folder_is_recognised(tmp_path):
    write_cifar10(tmp_path / "mine")
    assert load_dataset(str(tmp_path / "mine")).name == "cifar-10"


def test_column_major_pixels(cifar10):
    content = batch(100, 9)
    expected = load_dataset(str(cifar10)).test
    dump(cifar10 / "test_batch", content | {b"data": np.asfortranarray(content[b"data"])})
    assert load_dataset(str(cifar10)).test.inputs.equal(expected.inputs)


def test_written_by_python_2(cifar10):
    # Python 2 stores bytes as the STRING opcodes, and numpy of that time names numpy.core.
    content = batch(100, 9)
    head = b"\x80\x02}(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = content[b"data"].tobytes()
    state = b"(K\x01K\x09M\x00\x0c\x86" + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    labels = b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in content[b"labels"]) + b"e"
    expected = load_dataset(str(cifar10)).test
    (cifar10 / "test_batch").write_bytes(head + state + labels + b"u.")
    assert load_dataset(str(cifar10)).test.inputs.equal(expected.inputs)


def test_both_sets_in_one_folder(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    write_cifar100(tmp_path / "cifar-100-python")
    with pytest.raises(DataError, match=r"holds .*cifar-10-batches-py and .*cifar-100-python\. Name the one"):
        load_dataset(str(tmp_path))


def test_missing_files_are_listed(cifar10):
    (cifar10 / "data_batch_2").unlink()
    (cifar10 / "batches.meta").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_2, batches\.meta\. Unpack"):
        load_dataset(str(cifar10))
    assert len(load_inputs(str(cifar10), (3, 32, 32))) == 9


class Reduce:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("place", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_runs_nothing(cifar10, place, protocol):
    import os

    marker = cifar10 / "ran"
    attack = Reduce(os.mkdir, (str(marker),))
    content = pickle.dumps(batch(0, 12) | {b"label_names": NAMES, b"more": attack}, protocol=protocol)
    # The attack is real: an ordinary unpickler falls for it.
    pickle.loads(content)
    assert marker.is_dir()
    marker.rmdir()
    (cifar10 / place).write_bytes(content)
    with pytest.raises(DataError, match=rf"{place} was not loaded: it asks for (posix|nt)\.mkdir"):
        load_dataset(str(cifar10))
    assert not marker.exists()


@pytest.mark.parametrize(
    "asked",
    [
        b"cbuiltins\neval\n",
        b"c__builtin__\ngetattr\n",
        b"cnumpy\nload\n",
        b"cnumpy\nndarray.tofile\n",
        b"ccodecs\nopen\n",
    ],
)
def test_only_listed_globals(cifar10, asked):
    (cifar10 / "test_batch").write_bytes(b"\x80\x02" + asked + b".")
    with pytest.raises(DataError, match="which image files have no use for"):
        load_dataset(str(cifar10))


def test_one_file_cannot_change_how_the_next_is_read(cifar10):
    # BUILD with a slot state sets attributes of whatever is on the stack, here of the stand-in class itself.
    expected = load_dataset(str(cifar10)).digest()
    evil = b"\x80\x02cnumpy\nndarray\nN}U\x0c__setstate__c_codecs\nencode\ns\x86b."
    good = (cifar10 / "data_batch_1").read_bytes()
    (cifar10 / "data_batch_1").write_bytes(evil)
    with pytest.raises(DataError):
        load_dataset(str(cifar10))
    (cifar10 / "data_batch_1").write_bytes(good)
    assert load_dataset(str(cifar10)).digest() == expected


PIXELS = batch(0, 12)[b"data"]
CASES = {
    "not a dict": ([1], "holds list, not a dict"),
    "no data": ({b"labels": [0]}, "has no entry 'data', only: labels"),
    "no labels": ({b"data": PIXELS, b"other": 1}, "has no entry 'labels', only: data, other"),
    "float pixels": ({b"data": PIXELS / 255.0, b"labels": [0] * 12}, "data is not a uint8 array"),
    "shape": ({b"data": PIXELS[:, :100], b"labels": [0] * 12}, r"data is not a uint8 array of shape \(n, 3072\)"),
    "one axis": ({b"data": PIXELS[0], b"labels": [0] * 12}, "data is not a uint8 array"),
    "object pixels": ({b"data": PIXELS.astype(object), b"labels": [0] * 12}, "data is not a uint8 array"),
    "list pixels": ({b"data": [1, 2], b"labels": [0] * 12}, "data is not a uint8 array"),
    "count": ({b"data": PIXELS, b"labels": [0] * 11}, "holds 11 labels for 12 images"),
    "label type": ({b"data": PIXELS, b"labels": [0.5] * 12}, "labels must be a list of integers"),
    "label array": ({b"data": PIXELS, b"labels": np.zeros(12, int)}, "labels must be a list of integers"),
}


@pytest.mark.parametrize("case", CASES)
def test_malformed(cifar10, case):
    content, message = CASES[case]
    dump(cifar10 / "data_batch_4", content)
    with pytest.raises(DataError, match=rf"data_batch_4.*{message}"):
        load_dataset(str(cifar10))


def test_label_beyond_the_class_names(cifar10):
    dump(cifar10 / "test_batch", batch(100, 9) | {b"labels": [3] * 9})
    with pytest.raises(DataError, match="test_batch: labels holds the label 3, and there are 3 classes"):
        load_dataset(str(cifar10))


def test_class_names_that_are_no_names(cifar10):
    dump(cifar10 / "batches.meta", {b"label_names": [1, 2, 3]})
    with pytest.raises(DataError, match=r"batches\.meta: label_names must be a list of strings"):
        load_dataset(str(cifar10))


def test_truncated_anywhere(cifar10):
    whole = (cifar10 / "test_batch").read_bytes()
    for length in [*range(0, 120, 7), *range(120, len(whole), len(whole) // 12)]:
        (cifar10 / "test_batch").write_bytes(whole[:length])
        with pytest.raises(DataError, match="test_batch was not loaded"):
            load_dataset(str(cifar10))
