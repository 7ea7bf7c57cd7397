"""A protocol carried out: order, isolation of sections, what is kept, and what is measured again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from jemstone.data import Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation import Protocol, Result, comparison, evaluate
from jemstone.evaluation.extractors import Extractor
from jemstone.evaluation.measure import gather, kept, measure
from jemstone.evaluation.protocol import SECTIONS
from jemstone.evaluation.section import WARNINGS, Section, Subject, Warned
from jemstone.evaluation.store import Store

CLASSES = ("a", "b", "c")


def dataset():
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (120, 1, 4, 4), dtype=torch.uint8, generator=rng)
    labels = torch.arange(120) % 3
    parts = [Split(images[i : i + 40], labels[i : i + 40]) for i in (0, 40, 80)]
    return Dataset("toy", *parts, CLASSES)


def classifier():
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.SiLU(), nn.Linear(16, 3))
    return EnergyClassifier(nn.Sequential(*layers))


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for all sections, which record their calls and ask for one expensive piece."""
    made = []

    def stand_in(name):
        def section(subject, settings, common, work):
            made.append(name)
            piece = work.memo("piece", lambda: made.append(f"{name} piece") or {"x": np.arange(3)})
            work.say(f"about {name}")
            assert not subject.model.training
            result = Result(f"{name}/number", float(piece["x"].sum()), 0.0, 9.0, 3)
            warnings = [Warned("small-n", "3 numbers.")] if name == "ood" else []
            return Section([result], {"list": (1, 2)}, {"values": piece["x"]}, warnings, [f"note of {name}"], {})

        return section

    monkeypatch.setattr("jemstone.evaluation.measure.SECTIONS", {name: stand_in(name) for name in SECTIONS})
    return made


def test_sections_come_in_order_and_are_gathered(calls):
    said = []
    found = evaluate(classifier(), dataset(), protocol=Protocol().only("ood", "calibration"), on_progress=said.append)
    assert [name for name in calls if "piece" not in name] == ["ood", "calibration"]
    assert said == ["[1/2] ood", "  about ood", "[2/2] calibration", "  about calibration"]
    assert [r.name for r in found.results] == ["calibration/number", "ood/number"]
    figures = found.figures
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert list(figures["sections"]) == ["calibration", "ood"]
    assert figures["sections"]["ood"] == {"list": [1, 2]}
    assert figures["notes"] == ["note of calibration", "note of ood"]
    assert set(figures["protocol"]) == {"name", "seed", "batch_size", "resamples", "calibration", "ood"}
    assert figures["protocol"]["calibration"]["bins"] == 15


def test_warnings_carry_their_meaning_and_training_mode_is_one_of_them(calls):
    found = evaluate(classifier().eval(), dataset(), protocol=Protocol().only("ood"))
    (warning,) = found.figures["warnings"]
    assert warning == {
        "section": "ood", "name": "small-n", "text": "3 numbers.", "meaning": WARNINGS["small-n"]
    }  # fmt: skip
    found = evaluate(classifier().train(), dataset(), protocol=Protocol().only("ood"))
    assert [w["name"] for w in found.figures["warnings"]] == ["train-mode", "small-n"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "evaluation", tmp_path / "samples")


def run(store, protocol, subject=None, identity=None):
    said = []
    subject = subject or Subject(classifier().eval(), dataset())
    found = dict(measure(subject, protocol, store=store, identity=identity, say=said.append))
    return found, said


def test_what_was_measured_is_not_measured_again(calls, store):
    protocol = Protocol().only("calibration", "ood")
    first, _ = run(store, protocol)
    calls.clear()
    again, said = run(store, protocol)
    assert calls == []
    assert said == ["[1/2] calibration: measured before, in 0 s", "[2/2] ood: measured before, in 0 s"]
    assert gather(again, protocol) == gather(first, protocol)


def test_settings_data_model_and_version_each_make_a_new_measurement(calls, store, monkeypatch):
    protocol = Protocol().only("calibration", "ood")
    run(store, protocol)

    def measured(*args, **kwargs):
        calls.clear()
        run(store, *args, **kwargs)
        return [name for name in calls if "piece" not in name]

    assert measured(replace(protocol, ood=replace(protocol.ood, images=7))) == ["ood"]
    assert measured(replace(protocol, ood=replace(protocol.ood, images=7))) == []
    assert measured(replace(protocol, seed=1)) == ["calibration", "ood"]
    foreign = Subject(classifier().eval(), dataset(), {"mine": torch.zeros(3, 1, 4, 4)})
    assert measured(replace(protocol, seed=1), foreign) == ["ood"]  # the only section that looks at foreign sets
    moved = classifier().eval()
    with torch.no_grad():
        moved.network[1].bias[0] += 1
    assert measured(protocol, Subject(moved, dataset())) == ["calibration", "ood"]
    assert measured(protocol, identity={"chains": 2}) == ["calibration", "ood"]
    monkeypatch.setattr("jemstone.evaluation.measure.__version__", "9")
    assert measured(protocol, identity={"chains": 2}) == ["calibration", "ood"]


def test_new_libraries_and_extractors_make_a_new_measurement(calls, store, monkeypatch, tmp_path):
    protocol = Protocol().only("calibration", "robustness", "generation")
    file = tmp_path / "network.pt"
    file.write_bytes(b"one")
    protocol = replace(protocol, generation=replace(protocol.generation, extractor=f"inception={file}"))

    def measured(subject=None):
        calls.clear()
        run(store, protocol, subject)
        return [name for name in calls if "piece" not in name]

    assert measured() == ["calibration", "robustness", "generation"]
    assert measured() == []
    file.write_bytes(b"two")
    assert measured() == ["generation"]
    monkeypatch.setattr("jemstone.evaluation.measure.LIBRARIES", ("no library of this name",))
    assert measured() == ["robustness"]
    mine = Extractor("mine", lambda x: x)
    assert measured(Subject(classifier().eval(), dataset(), extractor=mine)) == ["generation"]


def test_a_killed_section_goes_on_from_its_pieces(calls, store, monkeypatch):
    protocol = Protocol().only("calibration", "ood")
    save = Store.save

    def killed(self, name, stored):
        if name == "ood":
            raise KeyboardInterrupt
        save(self, name, stored)

    monkeypatch.setattr(Store, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(store, protocol)
    assert calls == ["calibration", "calibration piece", "ood", "ood piece"]
    monkeypatch.setattr(Store, "save", save)
    calls.clear()
    run(store, protocol)
    assert calls == ["ood"]  # neither the finished section nor the finished piece


def test_sections_of_the_same_subject_are_kept_whatever_their_settings(calls, store):
    subject = Subject(classifier().eval(), dataset())
    run(store, Protocol().only("calibration", "ood"), subject)
    run(store, replace(Protocol(), ood=replace(Protocol().ood, images=7)).only("ood"), subject)
    found = kept(subject, Protocol(), store, {})
    assert list(found) == ["calibration", "ood"]
    assert found["ood"].settings["images"] == 7
    assert kept(subject, Protocol(seed=3), store, {}) == {}
    assert kept(Subject(subject.model, subject.data), Protocol(), store, {"chains": 2}) == {}


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(monkeypatch, fails):
    model = classifier().train()
    model.network[3].eval()
    model.network[1].bias.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()

    def broken(*_):
        raise KeyboardInterrupt

    if fails:
        monkeypatch.setattr("jemstone.evaluation.measure.SECTIONS", {"ood": broken})
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, dataset(), protocol=Protocol().only("ood"))
    else:
        evaluate(model, dataset(), protocol=replace(Protocol(), resamples=5).only("calibration", "ood"))
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["network.1.bias"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_runs_side_by_side_keep_their_order_and_their_gaps():
    a = [Result("accuracy", 0.9, 0.8, 1.0, 10), Result("pgd_linf/0.1", 0.5, 0.4, 0.6, 10)]
    b = [Result("accuracy", 0.8, 0.7, 0.9, 10), Result("temperature", 1.1, 1.0, 1.2, 10)]
    rows = comparison({"a": a, "b": b})
    assert [(row.name, row.better) for row in rows] == [
        ("accuracy", "higher"), ("pgd_linf/0.1", "higher"), ("temperature", "")
    ]  # fmt: skip
    assert [row.cells for row in rows] == [[a[0], b[0]], [a[1], None], [None, b[1]]]


class Noisy(nn.Module):
    """Draws from the global stream in its forward pass, in any mode."""

    def __init__(self):
        super().__init__()
        self.inner = classifier().network

    def forward(self, x):
        return self.inner(x) + 0.1 * torch.randn(len(x), 3, device=x.device)


@pytest.mark.parametrize("section", ["calibration", "ood", "distal"])
def test_a_model_that_draws_gives_the_same_numbers_again_and_leaves_the_stream(section):
    protocol = replace(Protocol(), resamples=5).only(section)
    protocol = replace(protocol, distal=replace(protocol.distal, images=6, steps=2))
    model, data, found = EnergyClassifier(Noisy()).eval(), dataset(), []
    for seed in (3, 4):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(evaluate(model, data, protocol=protocol).results)
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]


def test_pieces_have_streams_of_their_own(calls, store, monkeypatch):
    """A piece that is read from disk draws nothing: what comes after it must not notice."""
    drawn = []

    def section(subject, settings, common, work):
        work.memo("first", lambda: {"x": torch.rand(3).numpy()})
        drawn.append(torch.rand(3).tolist())
        raise KeyboardInterrupt

    monkeypatch.setattr("jemstone.evaluation.measure.SECTIONS", {"ood": section})
    for _ in range(2):
        drawn_before = len(drawn)
        with pytest.raises(KeyboardInterrupt):
            run(store, Protocol().only("ood"))
        assert len(drawn) == drawn_before + 1
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("ignorant", ["constant", "no_grad"])
def test_a_model_without_a_gradient_is_measured_and_warned_of(ignorant):
    class Ignorant(nn.Module):
        def forward(self, x):
            if ignorant == "constant":
                return torch.zeros(len(x), 3)
            with torch.no_grad():
                return 0.0 + x.flatten(1)[:, :3]

    protocol = replace(Protocol(), resamples=5).only("ood", "robustness", "distal")
    quick = replace(protocol.robustness, images=20, steps=2, restarts=1, autoattack_images=0, black_box_images=0)
    protocol = replace(protocol, robustness=quick, distal=replace(protocol.distal, images=6, steps=2))
    found = evaluate(EnergyClassifier(Ignorant()), dataset(), protocol=protocol)
    by_name = {r.name: r for r in found.results}
    assert by_name["ood/noise/approximate_mass/auroc"].value == 0.5
    assert "zero-gradient" in {w["name"] for w in found.figures["warnings"]}


def wrong(change):
    data = dataset()
    test = data.test
    floats = test.inputs.float() / 127.5
    return {
        "labels": replace(data, test=Split(test.inputs, torch.full((40,), -1))),
        "empty": replace(data, test=Split(test.inputs[:0], test.labels[:0])),
        "range": replace(data, test=Split(floats, test.labels)),
        "classes": replace(data, class_names=("a", "b", "c", "d")),
    }[change]


@pytest.mark.parametrize(
    ("change", "message"),
    [("labels", "must lie in"), ("empty", "no test examples"), ("range", "must lie in"), ("classes", "has 4")],
)
@pytest.mark.parametrize("section", ["ood", "corruptions", "distal"])
def test_data_that_do_not_fit_are_refused_by_every_section(section, change, message):
    with pytest.raises(DataError, match=message):
        evaluate(classifier(), wrong(change), protocol=Protocol().only(section))


def test_other_precisions_are_refused():
    with pytest.raises(ConfigError, match=r"float32.*model\.float"):
        evaluate(classifier().to(torch.bfloat16), dataset(), protocol=Protocol().only("ood"))


def test_pictures_of_another_state_go_with_it(store):
    protocol = replace(Protocol(), resamples=5, ood=replace(Protocol().ood, images=20)).only("ood")
    subject = Subject(classifier().eval(), dataset())
    run(store, protocol, subject)
    assert (store.pictures / "foreign.png").is_file()
    assert list(kept(subject, protocol, store, {})) == ["ood"]
    assert (store.pictures / "foreign.png").is_file()
    assert kept(subject, replace(protocol, seed=1), store, {}) == {}
    assert not list(store.pictures.iterdir())
