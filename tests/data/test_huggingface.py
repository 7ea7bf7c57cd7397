import sys

import numpy as np
import pytest
import torch
from PIL import Image

from jemstone.data import load_dataset, load_inputs, to_box
from jemstone.errors import DataError, MissingExtra

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 4, 5, 3), dtype=np.uint8)
LABELS = [i % 2 for i in range(40)]
CLASSES = datasets.ClassLabel(names=["cat", "dog"])


def table(which=slice(None), label=CLASSES, column="label", **more):
    images = [Image.fromarray(pixels) for pixels in PIXELS[which]]
    features = {"id": datasets.Value("int64"), "img": datasets.Image()}
    columns = {"id": list(range(len(images))), "img": images}
    if label is not None:
        features[column], columns[column] = label, LABELS[which]
    for name, feature in more.items():
        features[name], columns[name] = feature, LABELS[which]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def save(path, **splits):
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return f"hf:{path}"


def check(data):
    assert (data.class_names, data.input_shape) == (("cat", "dog"), (3, 4, 5))
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 10)
    assert data.test.inputs.equal(torch.from_numpy(PIXELS[30:]).permute(0, 3, 1, 2))
    assert data.test.labels.tolist() == LABELS[30:]
    known = {pixels.tobytes(): label for pixels, label in zip(PIXELS[:30], LABELS[:30], strict=True)}
    for split in (data.train, data.validation):
        for image, label in zip(split.inputs.permute(0, 2, 3, 1), split.labels, strict=True):
            assert known.pop(image.contiguous().numpy().tobytes()) == label
    assert not known


def test_saved_to_disk(tmp_path):
    source = save(tmp_path / "set", train=table(slice(0, 30)), test=table(slice(30, 40)))
    data = load_dataset(source)
    assert data.name == "set"
    check(data)
    assert load_inputs(source, (3, 4, 5)).equal(to_box(data.test.inputs))


def test_parquet_files(tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    for name, which in (("train", slice(0, 30)), ("test", slice(30, 40))):
        table(which).to_parquet(str(tmp_path / "set" / "data" / f"{name}-00000-of-00001.parquet"))
    data = load_dataset(f"hf:{tmp_path / 'set'}")
    assert data.name == "set"
    check(data)


def test_validation_serves_as_test(tmp_path):
    check(load_dataset(save(tmp_path / "set", train=table(slice(0, 30)), validation=table(slice(30, 40)))))


def test_validation_is_not_read_beside_test(tmp_path):
    splits = {"train": table(slice(0, 30)), "validation": table(slice(0, 5)), "test": table(slice(30, 40))}
    check(load_dataset(save(tmp_path / "set", **splits)))


def test_train_alone_holds_out_a_fifth(tmp_path):
    table().save_to_disk(str(tmp_path / "set"))
    data = load_dataset(f"hf:{tmp_path / 'set'}", validation=0.0)
    assert (len(data.train), len(data.test)) == (32, 8)
    assert len(load_inputs(f"hf:{tmp_path / 'set'}", (3, 4, 5))) == 8


@pytest.mark.parametrize("column", ["label", "fine_label"])
def test_integer_labels(tmp_path, column):
    data = load_dataset(save(tmp_path / "set", train=table(label=datasets.Value("int64"), column=column)))
    assert data.class_names == ("0", "1")


def test_fine_label_of_two(tmp_path):
    coarse = datasets.ClassLabel(names=["x", "y", "z"])
    data = load_dataset(save(tmp_path / "set", train=table(column="fine_label", coarse_label=coarse)))
    assert data.class_names == ("cat", "dog")


def test_inputs_without_labels(tmp_path):
    source = save(tmp_path / "set", test=table(label=None))
    assert len(load_inputs(source, (3, 4, 5))) == 40
    with pytest.raises(DataError, match="no split 'train', only: test"):
        load_dataset(source)


def test_no_label_column(tmp_path):
    with pytest.raises(DataError, match=r"one column of type ClassLabel.*id \(Value\), img \(Image\).*rename"):
        load_dataset(save(tmp_path / "set", train=table(label=None)))


def test_two_label_columns(tmp_path):
    with pytest.raises(DataError, match="one column of type ClassLabel"):
        load_dataset(save(tmp_path / "set", train=table(column="kind", other=CLASSES)))


def test_no_image_column(tmp_path):
    with pytest.raises(DataError, match=r"one column of type Image; it has 0\. Its columns are id .*store the set as"):
        load_dataset(save(tmp_path / "set", train=table().remove_columns("img")))


def test_two_image_columns(tmp_path):
    other = table(label=None).select_columns("img").rename_column("img", "other")
    two = datasets.concatenate_datasets([table(), other], axis=1)
    with pytest.raises(DataError, match="one column of type Image; it has 2"):
        load_dataset(save(tmp_path / "set", train=two))


@pytest.mark.parametrize("broken", [{"bytes": b"not an image", "path": None}, None])
def test_unreadable_image_is_named(tmp_path, broken):
    good = table().cast_column("img", datasets.Image(decode=False))
    rows = [row | {"img": broken} if row["id"] == 7 else row for row in good]
    bad = datasets.Dataset.from_list(rows, features=table().features)
    with pytest.raises(DataError, match=r"train, row 7, column 'img' cannot be read as an image"):
        load_dataset(save(tmp_path / "set", train=bad))


def test_missing_label_is_named(tmp_path):
    rows = [row | {"label": None} if row["id"] == 7 else row for row in table()]
    bad = datasets.Dataset.from_list(rows, features=table().features)
    with pytest.raises(DataError, match=r"train, column 'label' has type object.*integers"):
        load_dataset(save(tmp_path / "set", train=bad))


def test_unknown_name(tmp_path):
    with pytest.raises(DataError, match=r"hf:no-such-user/no-such-set cannot be loaded .*Check the name"):
        load_dataset("hf:no-such-user/no-such-set")


def test_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"'datasets'.*jemstone\[hf\]"):
        load_dataset("hf:mnist")
