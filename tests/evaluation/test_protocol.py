"""The whole evaluation on small models: what comes out, what is left untouched, what is refused."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from jemstone.data.dataset import Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation import (
    SCORES,
    Protocol,
    Result,
    accuracy,
    auroc,
    comparison,
    evaluate,
    higher_is_better,
    log_density,
)

CLASSES = ("a", "b", "c")
QUICK = Protocol(resamples=20, attack_images=12, attack_steps=3, linf=(0.05, 0.1), l2=(0.5,), batch_size=17)


def dataset(inputs, labels):
    split = Split(inputs, labels)
    return Dataset("toy", split, split, split, CLASSES)


def stored_images(n=40, width=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 4, width), dtype=torch.uint8, generator=rng)


@pytest.fixture
def images():
    return dataset(stored_images(), torch.arange(40) % 3)


@pytest.fixture
def vectors():
    rng = torch.Generator().manual_seed(0)
    return dataset(torch.randn(50, 5, generator=rng), torch.arange(50) % 3)


def network(features, classes=3):
    torch.manual_seed(0)
    return EnergyClassifier(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(features, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.5),
            nn.SiLU(),
            nn.Linear(16, classes),
        )
    )


@pytest.fixture(scope="module")
def evaluated():
    pytest.importorskip("foolbox")
    data = dataset(stored_images(), torch.arange(40) % 3)
    model = network(16)
    messages: list[str] = []
    ood = {"mine": stored_images(25, seed=1)}
    return model, data, evaluate(model, data, ood=ood, protocol=QUICK, on_progress=messages.append), messages


def test_every_result_is_there_in_order(evaluated):
    _, _, evaluation, messages = evaluated
    sets = ["noise", "constant", "inverted", "rotated", "interpolated", "mine"]
    assert [r.name for r in evaluation.results] == [
        "accuracy", "nll", "brier", "ece",
        *(f"ood/{s}/{score}/{metric}" for s in sets for score in SCORES for metric in ("auroc", "aupr", "fpr95")),
        "pgd_linf/0.05", "pgd_linf/0.1", "pgd_l2/0.5",
    ]  # fmt: skip
    assert all(r.low <= r.value <= r.high for r in evaluation.results)
    assert all(type(v) is float for r in evaluation.results for v in r[1:4])
    assert len(messages) == 1 + len(SCORES) + 2
    assert evaluation.figures["notes"] == []


def test_numbers_are_those_of_the_model_in_evaluation_mode(evaluated):
    model, data, evaluation, _ = evaluated
    by_name = {r.name: r for r in evaluation.results}
    model.eval()
    x = data.test.inputs.float() / 127.5 - 1
    with torch.no_grad():
        logits = model(x)
        assert by_name["accuracy"] == accuracy(logits.double().numpy(), data.test.labels.numpy())
        inside = log_density(model, x).double().numpy()
        outside = log_density(model, -x).double().numpy()
    assert by_name["ood/inverted/log_density/auroc"].value == pytest.approx(auroc(inside, outside), abs=2e-3)


def test_figures_keep_to_the_schema_and_survive_json(evaluated):
    _, _, evaluation, _ = evaluated
    figures = evaluation.figures
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert set(figures) == {"protocol", "notes", "reliability", "scores", "robustness", "sizes"}
    assert Protocol(**{k: tuple(v) if isinstance(v, list) else v for k, v in figures["protocol"].items()}) == QUICK
    assert set(figures["reliability"]) == {"edges", "count", "confidence", "accuracy", "low", "high"}
    assert sum(figures["reliability"]["count"]) == 40
    sizes = figures["sizes"]
    assert (sizes["test"], sizes["attack"], sizes["ood"]["noise"], sizes["ood"]["mine"]) == (40, 12, 40, 25)
    for score in SCORES:
        histogram = figures["scores"][score]
        assert len(histogram["edges"]) == len(histogram["test"]) + 1
        assert histogram["edges"] == sorted(set(histogram["edges"]))
        assert sum(histogram["test"]) == 40  # outliers are in the end bins
        assert {name: sum(counts) for name, counts in histogram["ood"].items()} == sizes["ood"]
    assert figures["robustness"]["linf"]["eps"] == [0, 0.05, 0.1]
    assert figures["robustness"]["l2"]["eps"] == [0, 0.5]
    assert all(len(values) == 3 for values in figures["robustness"]["linf"].values())


def test_the_seed_decides_everything(evaluated):
    model, data, evaluation, _ = evaluated
    ood = {"mine": data.test.inputs[:25] // 2}
    state = torch.get_rng_state()
    first = evaluate(model, data, ood=ood, protocol=QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert evaluate(model, data, ood=ood, protocol=QUICK) == first
    assert evaluate(model, data, ood=ood, protocol=replace(QUICK, seed=1)).results != first.results
    assert evaluation.results[:4] == first.results[:4]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(images, fails):
    model = network(16).train()
    model.network[2].eval()
    model.network[1].bias.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if fails:
        with pytest.raises(ConfigError):
            evaluate(model, images, ood={"noise": images.test.inputs}, protocol=QUICK)
    else:
        evaluate(model, images, protocol=QUICK)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["network.1.bias"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_vectors_are_not_attacked_and_the_notes_say_so(vectors):
    evaluation = evaluate(network(5), vectors, protocol=QUICK)
    assert evaluation.figures["robustness"] == {}
    assert evaluation.figures["sizes"]["attack"] == 0
    assert [note for note in evaluation.figures["notes"] if "without a box" in note]
    assert list(evaluation.figures["sizes"]["ood"]) == ["noise", "shuffled", "interpolated"]
    assert not [r for r in evaluation.results if r.name.startswith("pgd")]


def test_without_foolbox_the_rest_is_measured(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    evaluation = evaluate(network(16), images, protocol=QUICK)
    assert evaluation.figures["robustness"] == {}
    assert [note for note in evaluation.figures["notes"] if "jemstone[attacks]" in note]
    assert len(evaluation.results) == 4 + 5 * 9


def test_what_cannot_be_made_is_noted():
    data = dataset(stored_images(width=5), torch.zeros(40, dtype=torch.int64))
    evaluation = evaluate(network(20), data, protocol=replace(QUICK, linf=(), l2=()))
    assert len(evaluation.figures["notes"]) == 2
    assert set(evaluation.figures["sizes"]["ood"]) == {"noise", "constant", "inverted"}
    assert evaluation.figures["sizes"]["attack"] == 0


def test_limits_take_a_seeded_subset(images):
    protocol = replace(QUICK, ood_images=10, linf=(), l2=())
    sizes = evaluate(network(16), images, ood={"mine": images.test.inputs}, protocol=protocol).figures["sizes"]
    assert sizes["test"] == 40
    assert set(sizes["ood"].values()) == {10}


def test_a_constant_score_still_has_a_histogram(vectors):
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x[:, :3]

    evaluation = evaluate(EnergyClassifier(Constant()), vectors, protocol=QUICK)
    by_name = {r.name: r for r in evaluation.results}
    assert by_name["ood/noise/log_density/auroc"][1:4] == (0.5, 0.5, 0.5)
    assert by_name["ood/noise/log_density/fpr95"].value == 1
    assert sum(evaluation.figures["scores"]["log_density"]["test"]) == 50
    edges = evaluation.figures["scores"]["log_density"]["edges"]
    assert edges == sorted(set(edges))


def test_outliers_are_counted_in_the_end_bins(vectors):
    class First(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0] * 1e3, x[:, 1], x[:, 2]], dim=1)

    far = torch.zeros(500, 5)
    far[0, 0], far[1, 1] = 1e6, 1.0
    histogram = evaluate(EnergyClassifier(First()), vectors, ood={"far": far}, protocol=QUICK).figures["scores"]
    assert histogram["log_density"]["edges"][-1] < 1e6
    assert histogram["log_density"]["ood"]["far"][-1] >= 1
    assert sum(histogram["log_density"]["ood"]["far"]) == 500


def test_mistakes_are_named(images, vectors):
    with pytest.raises(DataError, match="4 classes and data set 'toy' has 3"):
        evaluate(network(16, classes=4), images, protocol=QUICK)
    broken = network(16)
    with torch.no_grad():
        broken.network[1].weight.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite on 40 of 40"):
        evaluate(broken, images, protocol=QUICK)
    with pytest.raises(DataError, match="Unlabelled"):
        evaluate(network(16), dataset(images.test.inputs, torch.full((40,), -1)), protocol=QUICK)
    with pytest.raises(DataError, match="no test examples"):
        evaluate(network(16), dataset(images.test.inputs[:0], images.test.labels[:0]), protocol=QUICK)
    with pytest.raises(ConfigError, match="cannot be called 'a/b'"):
        evaluate(network(16), images, ood={"a/b": images.test.inputs}, protocol=QUICK)
    with pytest.raises(DataError, match="has shape"):
        evaluate(network(16), images, ood={"x": torch.zeros(5, 1, 5, 5)}, protocol=QUICK)
    with pytest.raises(DataError, match="leaves the range"):
        evaluate(network(16), images, ood={"x": torch.full((5, 1, 4, 4), 255.0)}, protocol=QUICK)
    with pytest.raises(DataError, match="ood/x/log_density: scores must be finite"):
        evaluate(network(5), vectors, ood={"x": torch.full((5, 5), float("nan"))}, protocol=QUICK)


@pytest.mark.parametrize("field", ["bins", "resamples", "attack_images", "attack_steps", "ood_images", "batch_size"])
def test_a_protocol_refuses_what_it_cannot_measure(field):
    with pytest.raises(ConfigError, match=field):
        Protocol(**{field: 0})
    with pytest.raises(ConfigError, match="positive radii"):
        Protocol(l2=(0.5, 0.0))


def test_every_result_has_a_direction(evaluated):
    directions = {r.name: higher_is_better(r.name) for r in evaluated[2].results}
    assert None not in directions.values()
    assert directions["accuracy"]
    assert directions["pgd_l2/0.5"]
    assert directions["ood/mine/log_density/aupr"]
    assert not directions["ood/mine/log_density/fpr95"]
    assert not directions["nll"]
    assert higher_is_better("fid") is None


def test_comparison_lines_runs_up():
    a, n, f = (Result(name, 0.5, 0.4, 0.6, 10) for name in ("accuracy", "nll", "fid"))
    b = a._replace(value=0.6)
    rows = comparison({"first": [a, f], "second": [n, b]})
    assert [tuple(row) for row in rows] == [
        ("accuracy", "higher", [a, b]),
        ("fid", "", [f, None]),
        ("nll", "lower", [None, n]),
    ]
    assert comparison({}) == []


def test_ten_thousand_scores_do_not_take_minutes():
    """One resample costs two histograms, not a sort: 200 resamples of three metrics take well under a second."""
    import time

    from jemstone.evaluation import detection

    rng = np.random.default_rng(0)
    start = time.process_time()
    detection("x", rng.normal(size=10_000), rng.normal(size=10_000), resamples=200)
    assert time.process_time() - start < 2
