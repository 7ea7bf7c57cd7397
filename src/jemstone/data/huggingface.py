"""Sets of the Hugging Face hub, or folders in its formats. Needs the extra `hf`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jemstone.data.folders import TEST_NAMES, read_images
from jemstone.data.raw import Examples, Source
from jemstone.errors import DataError, MissingExtra

LABEL_NAMES = ("label", "fine_label")


def read_huggingface(name: str, *, test_only: bool) -> Source:
    """The images and labels of the set `name`: on the hub, or a local folder (Parquet, images, `save_to_disk`).

    The splits are `train` and `test`; `validation` serves as test where there is no test split, and is not read
    otherwise. The images are the only column of type Image. The labels are the only column of type ClassLabel; of
    several the one called `label` or `fine_label`; without any, a column of integers called so. With `test_only` no
    labels are needed if there is a test split.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "hf") from error

    where = f"hf:{name}"
    saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        splits = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{where} cannot be loaded ({error}). Check the name, the network, or the folder.") from error
    if not isinstance(splits, dict):
        splits = {"train": splits}
    train = splits.get("train")
    test_name = next((key for key in TEST_NAMES if key in splits), None)
    if train is None and not (test_only and test_name):
        raise DataError(f"{where} has no split 'train', only: {', '.join(splits)}. A train split is needed.")

    used = {"train": train} if train is not None and not (test_only and test_name) else {}
    if test_name is not None:
        used[test_name] = splits[test_name]
    features = next(iter(used.values())).features
    image = _image_column(features, where)
    label = _label_column(features, where, required="train" in used)
    if label is None or not isinstance(features[label], datasets.ClassLabel):
        names = None
    else:
        names = tuple(features[label].names)

    def files() -> Iterator[tuple[str, io.BytesIO | Path]]:
        for split, rows in used.items():
            # Undecoded, so that pillow's errors can be told with the row that they belong to.
            for index, row in enumerate(rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))):
                yield f"{where}: {split}, row {index}, column {image!r}", _file(row[image])

    images = read_images(files())
    parts: dict[str, Examples] = {}
    start = 0
    for split, rows in used.items():
        labels = None if label is None else np.array(list(rows[label]))
        at = f"{where}: {split}, column "
        parts[split] = Examples(images[start : start + len(rows)], labels, f"{at}{image!r}", f"{at}{label!r}")
        start += len(rows)
    short = Path(name).name if saved or Path(name).is_dir() else name
    return Source(short, parts.get("train"), parts[test_name] if test_name else None, names)


def _file(value: Any) -> io.BytesIO | Path:
    if value is None:
        return io.BytesIO()
    return io.BytesIO(value["bytes"]) if value["bytes"] is not None else Path(value["path"])


def _image_column(features: Any, where: str) -> str:
    found = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if len(found) == 1:
        return str(found[0])
    raise DataError(
        f"{where} must have one column of type Image; it has {len(found)}. Its columns are {_listed(features)}. Cast "
        "or remove columns, or store the set as .npz."
    )


def _label_column(features: Any, where: str, *, required: bool) -> str | None:
    classes = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if len(classes) == 1:
        return str(classes[0])
    integers = [name for name, feature in features.items() if "int" in str(getattr(feature, "dtype", ""))]
    for name in LABEL_NAMES:
        if name in (classes or integers):
            return name
    if not required:
        return None
    raise DataError(
        f"{where} must have one column of type ClassLabel, or integers called {' or '.join(LABEL_NAMES)}. Its columns "
        f"are {_listed(features)}. Cast or rename the column of class indices."
    )


def _listed(features: Any) -> str:
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
