"""figures.json, part by part: whole, in pieces, damaged."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from jemstone.report.read_figures import Doubt, read_evaluation


@pytest.fixture
def content(make_run):
    return json.loads((make_run(missing=("results", "metrics", "samples")) / "figures.json").read_text())


def test_every_section_is_read_as_it_was_written(content):
    problems: list[str] = []
    found = read_evaluation(content, problems)
    assert problems == []
    assert found.measured == tuple(content["sections"])
    assert found.empty == ()
    assert (found.step, found.notes) == (600, ("Attacks ran on 100 test images.",))
    assert found.seconds["ood"] == 2.5
    assert found.reliability.count[-1] == 250
    assert found.scaled.accuracy != found.reliability.accuracy
    assert found.equal_mass == found.reliability
    assert found.temperature == 1.7
    assert (found.near, found.far) == (("letters",), ("noise",))
    assert list(found.scores) == ["log_density", "max_probability", "approximate_mass"]
    assert set(found.scores["log_density"].ood) == {"letters", "noise"}
    assert found.corruptions.kinds["blur"]["ece"].high == (0.95, 0.9, 0.8, 0.7, 0.6)
    assert found.corruptions.clean == {"accuracy": 0.97, "ece": 0.02}
    assert found.attacks["linf"].x == (0.0, 0.02, 0.05, 0.1, 0.2)
    assert found.autoattack["l2"].x == (0.0, 0.4)
    assert (found.black_box.x, found.black_box.value, found.huge.x) == ((0.1,), (0.3,), (0.5,))
    assert found.zero_gradient == 0.125
    assert (set(found.refined), set(found.transferred), set(found.worst)) == ({"0", "1"}, {"1"}, {"1"})
    assert sum(found.distal_probability.counts["counts"]) == 200
    assert set(found.distal_density.counts) == {"test", "distal"}
    assert (found.extractor, found.per_class_fid) == ("pixels", {"0": 21.5, "1": 23.5})
    assert found.nearest.bins("test") == (found.nearest.edges, found.nearest.counts["test"])
    assert (found.long_run.life, found.long_run.r_hat, found.long_run.data) == (100, 1.04, (-1.5, -0.5, 0.5))
    assert found.long_run.energy.low == (2, 1, -1, -2, -2)
    assert np.isnan(found.long_run.diversity[-1])
    assert (found.likelihood.method, found.likelihood.domain) == ("ais", (-1, 1))
    assert found.likelihood.effective_sample_size == 51.2
    assert len(found.likelihood.acceptance) == 3


FIELDS = {
    "calibration": ["reliability", "equal_mass", "scaled", "temperature"],
    "ood": ["scores", "near", "far"],
    "corruptions": ["corruptions"],
    "robustness": ["attacks", "autoattack", "black_box", "huge", "zero_gradient"],
    "refinement": ["refined", "transferred", "worst"],
    "distal": ["distal_probability", "distal_density"],
    "generation": ["nearest", "extractor", "per_class_fid"],
    "long_run": ["long_run"],
    "likelihood": ["likelihood"],
}


@pytest.mark.parametrize("section", FIELDS)
@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_section_that_is_not_there_or_had_nothing_to_measure_costs_itself_only(content, section, kind):
    whole, problems = read_evaluation(content, []), []
    if kind == "missing":
        del content["sections"][section]
    else:
        content["sections"][section] = {}
    found = read_evaluation(content, problems)
    assert problems == []
    assert (section in found.measured) == (kind == "empty")
    assert found.empty == ((section,) if kind == "empty" else ())
    for name, fields in FIELDS.items():
        for field in fields:
            left, before = getattr(found, field), getattr(whole, field)
            assert (not left) if name == section else (repr(left) == repr(before)), field


DAMAGES = {
    "calibration/reliability": ("count", [1, 2]),
    "calibration/scaled": ("edges", [0, None, 1]),
    "ood/scores/log_density": ("ood", [1]),
    "robustness/curves/linf": ("low", "0.1"),
    "robustness/black_box": ("eps", None),
    "refinement/curves/1": ("accuracy", [0.1]),
    "distal/log_density": ("test", []),
    "generation/nearest": ("samples", 3),
    "corruptions": ("severities", [1, 2]),
    "long_run": ("life", None),
    "likelihood": ("domain", [0]),
}


@pytest.mark.parametrize("where", DAMAGES)
def test_one_damaged_part_is_named_and_does_not_cost_the_others(content, where):
    key, value = DAMAGES[where]
    whole = read_evaluation(content, [])
    target = content["sections"]
    for step in where.split("/"):
        target = target[step]
    target[key] = value
    problems: list[str] = []
    found = read_evaluation(content, problems)
    assert problems == [f"figures.json: the part {where!r} does not have the expected form and is left out."]
    changed = [name for name in asdict(found) if repr(getattr(found, name)) != repr(getattr(whole, name))]
    assert len(changed) == 1
    assert changed[0] in FIELDS[where.split("/")[0]]


@pytest.mark.parametrize("where", ["calibration/reliability", "ood/scores", "distal/probability", "robustness/curves"])
def test_a_part_that_a_measured_section_must_have_is_named_where_it_lacks(content, where):
    section, key = where.split("/")
    del content["sections"][section][key]
    problems: list[str] = []
    read_evaluation(content, problems)
    assert problems == [f"figures.json: the part {where!r} does not have the expected form and is left out."]


def test_parts_that_a_section_may_lack_are_no_problem(content):
    found = content["sections"]
    found["calibration"] |= {"scaled": None, "temperature": None}
    found["robustness"] |= {"black_box": None, "huge": None, "zero_gradient": None}
    del found["robustness"]["autoattack"]
    found["generation"]["nearest"] = None
    found["long_run"]["r_hat"] = None
    del found["refinement"]["worst"]
    found["likelihood"] |= {"method": "quadrature", "effective_sample_size": None, "acceptance": None}
    found["likelihood"]["log_weights"] = None
    problems: list[str] = []
    read = read_evaluation(content, problems)
    assert problems == []
    assert (read.scaled, read.black_box, read.nearest, read.likelihood.log_weights) == (None,) * 4


def test_a_section_that_is_no_object_is_named(content):
    content["sections"]["ood"] = 3
    problems: list[str] = []
    found = read_evaluation(content, problems)
    assert problems == ["figures.json: the section 'ood' does not have the expected form and is left out."]
    assert "ood" not in found.measured


def test_warnings_are_read_and_damaged_ones_named(content, doubt):
    content["warnings"] = [doubt, 3, {"section": "ood"}]
    problems: list[str] = []
    found = read_evaluation(content, problems)
    assert found.doubts == (Doubt(**doubt),)
    assert len(problems) == 1
    assert "warning" in problems[0]


def test_figures_of_an_earlier_protocol_are_not_shown_and_named(content):
    problems: list[str] = []
    old = {"protocol": {"name": "v0"}, "reliability": content["sections"]["calibration"]["reliability"]}
    found = read_evaluation(old, problems)
    assert found.measured == ()
    assert "Evaluate again" in problems[0]


@pytest.mark.parametrize(
    "odd", [{"sections": []}, {"sections": {}, "warnings": 3, "notes": 3, "seconds": [], "step": "a"}]
)
def test_odd_tops_are_read_as_nothing(odd):
    found = read_evaluation(odd, [])
    assert (found.measured, found.doubts, found.notes, found.step) == ((), (), (), None)
