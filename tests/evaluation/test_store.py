"""What an evaluation keeps: whole or not at all, found under its key alone, never taken for something else."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from jemstone.data import Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.errors import RunError
from jemstone.evaluation.intervals import Result
from jemstone.evaluation.section import Chains, Picture, Section, Subject, Warned
from jemstone.evaluation.store import Key, Store, Stored, foreign_digests, read_examples, subject_digest
from jemstone.sampling import langevin, uniform

KEY = Key("subject", "settings")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "evaluation", tmp_path / "samples")


def stored(**pictures):
    section = Section(
        results=[Result("pgd_linf/0.1", 0.5, 0.4, 0.6, 100)],
        figures={"curves": {"linf": {"eps": [0.0, 0.1]}}, "missing": float("nan")},
        examples={"pgd_linf/0.1": np.arange(4) % 2 == 0, "score/test": np.linspace(0, 1, 5, dtype=np.float32)},
        warnings=[Warned("small-n", "100 images.")],
        notes=["Left out."],
        pictures=pictures,
    )
    return Stored(KEY, {"images": 100, "radii": [0.1]}, section, 1.5)


def test_a_section_comes_back_as_it_was_kept(store):
    store.save("robustness", stored(attacked=Picture(torch.zeros(4, 1, 6, 6), "Attacked.", columns=2)))
    read = store.load("robustness")
    assert read.key == KEY
    assert read.settings == {"images": 100, "radii": [0.1]}
    assert read.seconds == 1.5
    assert read.section.results == stored().section.results
    assert read.section.warnings == stored().section.warnings
    assert read.section.notes == ["Left out."]
    assert read.section.figures == {"curves": {"linf": {"eps": [0.0, 0.1]}}, "missing": None}
    assert {k: (v.dtype, v.tolist()) for k, v in read.section.examples.items()} == {
        k: (v.dtype, v.tolist()) for k, v in stored().section.examples.items()
    }
    assert json.loads((store.pictures / "attacked.json").read_text()) == {"caption": "Attacked."}
    with Image.open(store.pictures / "attacked.png") as image:
        assert image.width == image.height


def test_a_section_whose_pictures_are_gone_is_measured_again(store):
    store.save("robustness", stored(attacked=Picture(torch.zeros(4, 1, 6, 6), "Attacked.")))
    (store.pictures / "attacked.png").unlink()
    assert store.load("robustness") is None


@pytest.mark.parametrize("name", ["robustness.json", "robustness.npz"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "other"])
def test_a_damaged_section_counts_as_missing(store, name, damage):
    store.save("robustness", stored())
    path = store.folder / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "other": b"[1, 2]"}[damage])
    assert store.load("robustness") is None


def test_a_kill_between_the_two_files_leaves_no_section(store, monkeypatch):
    """Old numbers beside new examples would pass for one measurement."""
    store.save("robustness", stored())
    written = []

    def killed(path, content):
        written.append(path.name)
        if path.suffix == ".json":
            raise KeyboardInterrupt
        path.write_bytes(content)

    for module in ("store", "arrays"):
        monkeypatch.setattr(f"jemstone.evaluation.{module}.write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save("robustness", stored())
    assert written == ["robustness.npz", "robustness.json"]
    assert store.load("robustness") is None


def test_pieces_are_made_once_per_key_and_dropped_with_the_finished_section(store):
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(3), "b/c": np.array([True])}

    first = store.memo("robustness", KEY)("PGD linf, 0.1", make)
    again = store.memo("robustness", KEY)("PGD linf, 0.1", make)
    assert len(made) == 1
    assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in first.items()}
    store.memo("robustness", KEY)("PGD linf; 0.1", make)  # the same file name but for its digest
    store.memo("ood", Key("subject", "other"))("PGD linf, 0.1", make)
    assert len(made) == 3
    store.save("robustness", stored())
    store.memo("ood", Key("subject", "other"))("PGD linf, 0.1", make)
    assert len(made) == 3
    store.memo("robustness", KEY)("PGD linf, 0.1", make)
    assert len(made) == 4


def test_a_damaged_piece_is_made_again(store):
    store.memo("robustness", KEY)("x", lambda: {"a": np.arange(3)})
    (piece,) = store.folder.glob("parts/*/*.npz")
    piece.write_bytes(piece.read_bytes()[:40])
    assert store.memo("robustness", KEY)("x", lambda: {"a": np.arange(4)})["a"].tolist() == [0, 1, 2, 3]


def test_forgetting_drops_the_section_and_its_pieces(store):
    store.save("robustness", stored())
    store.memo("robustness", KEY)("x", lambda: {"a": np.arange(3)})
    store.memo("ood", KEY)("x", lambda: {"a": np.arange(3)})
    store.forget("robustness")
    assert store.load("robustness") is None
    assert [path.parent.name[:4] for path in store.folder.glob("parts/*/*")] == ["ood-"]


def test_values_per_example_are_read_alone(store):
    store.save("robustness", stored())
    assert set(read_examples(store.folder, "robustness")) == {"pgd_linf/0.1", "score/test"}
    assert read_examples(store.folder, "ood") == {}
    (store.folder / "robustness.npz").write_bytes(b"PK")
    with pytest.raises(RunError, match="evaluate the run again"):
        read_examples(store.folder, "robustness")


def subject(**changes):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    split = Split(torch.arange(12.0).reshape(6, 2), torch.arange(6) % 3)
    data = Dataset("toy", split, split, split, ("a", "b", "c"))
    chains = Chains(uniform((2,), None), langevin(0.1, 0.1), 5, 50, torch.zeros(4, 2), "uniform")
    return replace(Subject(EnergyClassifier(network), data, {}, chains), **changes)


def test_equal_subjects_share_a_digest_and_any_change_makes_another():
    one = subject_digest(subject(), {"k": 1})
    assert subject_digest(subject(), {"k": 1}) == one
    moved = subject()
    with torch.no_grad():
        moved.model.network[0].bias[0] += 1e-6
    data = subject().data
    shifted = replace(data, test=Split(data.test.inputs + 1, data.test.labels))
    other_chains = replace(subject().chains, life=51)
    other_buffer = replace(subject().chains, buffer=torch.ones(4, 2))
    torch.manual_seed(0)
    smooth = EnergyClassifier(nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 3)))
    others = [
        subject_digest(subject(), {"k": 2}),
        subject_digest(moved, {"k": 1}),
        *(
            subject_digest(subject(**change), {"k": 1})
            for change in ({"data": shifted}, {"chains": other_chains}, {"chains": other_buffer}, {"chains": None},
                           {"model": smooth})
        ),
    ]  # fmt: skip
    assert len({one, *others}) == 1 + len(others)


def test_foreign_sets_have_a_digest_of_their_own():
    sets = [{}, {"a": torch.zeros(2, 2)}, {"b": torch.zeros(2, 2)}, {"a": torch.ones(2, 2)}]
    found = [foreign_digests(subject(foreign=s)) for s in sets]
    assert [list(digests) for digests in found] == [[], ["a"], ["b"], ["a"]]
    assert found[1]["a"] == found[2]["b"] != found[3]["a"]
    assert len({subject_digest(subject(foreign=s), {}) for s in sets}) == 1
