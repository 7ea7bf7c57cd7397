"""What each figure is drawn from, and that the drawing shows it."""

import pytest

from jemstone.report import evaluation_plots as plots
from jemstone.report import parts_attacks, parts_predictions, parts_samples
from jemstone.report.evaluation_plots import Line
from jemstone.report.plots import run_colour
from jemstone.report.read import read_run
from jemstone.report.read_figures import Curve, Reliability, ScoreHistogram

BLUE, RED = run_colour(0), run_colour(1)
LINE = Curve((0.0, 0.1), (0.9, 0.4), (0.8, 0.3), (0.95, 0.5))


@pytest.fixture
def runs(make_run):
    return [read_run(make_run("jem")), read_run(make_run("plain", jem=False))]


@pytest.fixture
def drawn(monkeypatch):
    """What each drawing function was called with: name -> list of (positional, by name)."""
    calls = {}
    for name in ("attack_curves", "severity_curves", "reliability_diagram", "histogram", "over_steps", "temperatures"):

        def record(*args, _name=name, **named):
            calls.setdefault(_name, []).append((args, named))
            return "<svg/>"

        monkeypatch.setattr(plots, name, record)
    return calls


def told(lines):
    return [(line.colour, line.style, line.curve.x) for line in lines]


def test_autoattack_and_the_black_box_stand_on_the_curves_of_their_norm(runs, drawn):
    parts_attacks.robustness(runs, ["jem", "plain"])
    (linf, l2) = (args for args, _ in drawn["attack_curves"])
    curve, point = (0.0, 0.02, 0.05, 0.1, 0.2), (0.1,)
    assert told(linf[0]) == [
        *((BLUE, "PGD", curve), (RED, "PGD", curve)),
        *((BLUE, "AutoAttack", (0.05,)), (RED, "AutoAttack", (0.05,))),  # without the clean images
        *((BLUE, "black box", point), (RED, "black box", point)),
    ]
    assert [line.style for line in l2[0]] == ["PGD", "PGD", "AutoAttack", "AutoAttack"]
    assert linf[1] == l2[1] == 0.1  # of guessing among ten classes


def test_whether_attacks_can_be_believed_is_told_in_numbers(runs, drawn):
    checks = parts_attacks.robustness(runs, ["jem", "plain"]).blocks[1]
    zero, huge = checks.groups[""]
    assert [cell.text for cell in zero.cells] == ["12.5", "12.5"]
    assert (huge.cells[0].text, huge.cells[0].interval) == ("0.0", "0.0 – 40.0")
    assert "L∞\u00a0≤\u00a00.5" in huge.label


def test_the_defence_is_drawn_by_its_steps_with_both_attacks_and_their_worst(runs, drawn):
    blocks = parts_attacks.refinement(runs, ["jem", "plain"]).blocks
    assert [panel.heading for panel in blocks[0].panels] == ["No refinement", "1 step of refinement"]
    zero, one = (args[0] for args, _ in drawn["attack_curves"])
    assert [line.style for line in zero] == ["adaptive"] * 2
    assert [line.style for line in one] == ["adaptive"] * 2 + ["transferred"] * 2 + ["worst of both"] * 2
    assert [line.curve for line in one if line.colour == RED] == [
        getattr(runs[1].evaluation, of)["1"] for of in ("refined", "transferred", "worst")
    ]


def test_corruptions_start_at_the_clean_images_where_these_were_measured(runs, drawn):
    blocks = parts_predictions.corruptions(runs, ["jem", "plain"]).blocks
    assert [(b.heading, b.folded, len(b.panels)) for b in blocks] == [
        ("Accuracy", False, 2),
        ("Expected calibration error", True, 2),
        ("AUROC of log p(x), clean against corrupted", True, 2),
    ]
    lines = [args[0][0].curve for args, _ in drawn["severity_curves"]]
    assert [(curve.x[0], curve.value[0]) for curve in lines[::2]] == [(0, 0.97), (0, 0.02), (1, 0.9)]
    assert [named["percent"] for _, named in drawn["severity_curves"][::2]] == [True, True, False]
    assert drawn["severity_curves"][2][1]["top"] == 0.95  # the largest error: one scale for all kinds


def test_the_scaled_diagram_stands_beside_the_one_as_trained(runs, drawn):
    blocks = parts_predictions.calibration(runs, ["jem", "plain"]).blocks
    found = [run.evaluation for run in runs]
    shown = [args for args, _ in drawn["reliability_diagram"]]
    assert [bins for bins, _ in shown] == [
        part for one in found for part in (one.reliability, one.scaled, one.equal_mass)
    ]
    assert [colour for _, colour in shown] == [BLUE] * 3 + [RED] * 3
    assert [panel.caption.replace("\u00a0", " ") for panel in blocks[0].panels[:2]] == [
        "as trained, ECE 2.7 %",
        "after temperature scaling, T = 1.7, ECE 1.2 %",
    ]
    assert blocks[0].columns == "pair"


def test_histograms_set_the_runs_own_over_what_it_compares_with(runs, drawn):
    jem, found = runs[:1], runs[0].evaluation
    parts_attacks.distal(jem, ["jem"])
    parts_samples.samples(jem, ["jem"])
    parts_samples.likelihood(jem, ["jem"])
    shown = [(args[0], args[1], named.get("beside")) for args, named in drawn["histogram"]]
    assert shown == [
        (found.distal_probability.bins("counts"), BLUE, None),
        (found.distal_density.bins("distal"), BLUE, found.distal_density.bins("test")),
        (found.nearest.bins("samples"), BLUE, found.nearest.bins("test")),
        (found.likelihood.test.bins("counts"), BLUE, found.likelihood.train.bins("counts")),
        (found.likelihood.log_weights.bins("counts"), BLUE, None),
    ]
    assert drawn["temperatures"][0][0] == (found.likelihood.acceptance, BLUE)


def test_long_chains_are_drawn_against_the_data_and_the_life_of_a_chain(runs, drawn):
    blocks = parts_samples.long_run(runs, ["jem", "plain"]).blocks
    (energy, own), _, (diversity, together), (confidence, shares) = drawn["over_steps"]
    assert energy == ([Line(BLUE, runs[0].evaluation.long_run.energy, "")], [(BLUE, 100)])
    assert own == {"band": (-1.5, -0.5, 0.5)}
    assert [line.colour for line in diversity[0]] == [BLUE, RED]
    assert diversity[0][0].curve.value[:4] == (1.2, 1.1, 1.0, 0.9)
    assert (together["level"], shares["percent"]) == (1.0, True)
    assert confidence[0][0].curve.value == (0.2, 0.4, 0.6, 0.8, 0.9)
    assert blocks[0].panels[0].caption == "energy in nats, split R-hat 1.04"


def test_a_picture_that_is_the_same_in_all_runs_is_shown_once(runs, tmp_path):
    titles = {"data": "Training images"}
    ((_, differing),) = parts_samples.pictures(runs, ["jem", "plain"], ["data"], titles)
    assert [panel.run for panel in differing] == [0, 1]
    source, copy = (run.path / "samples" / "data.png" for run in runs)
    copy.write_bytes(source.read_bytes())
    ((_, same),) = parts_samples.pictures(runs, ["jem", "plain"], ["data"], titles)
    assert [(panel.run, panel.heading) for panel in same] == [(None, "Training images")]


def test_only_styles_that_are_there_are_in_the_legend():
    pgd, auto = Line(BLUE, LINE, "PGD"), Line(RED, LINE, "AutoAttack")
    alone, both = plots.attack_curves([pgd], 0.1), plots.attack_curves([pgd, auto], 0.1)
    assert ">PGD</text>" not in alone  # nothing to tell it from
    for words in (">PGD</text>", ">AutoAttack</text>"):
        assert words in both
    assert "black box" not in both
    assert (BLUE.lower() in both, RED.lower() in both, RED.lower() in alone) == (True, True, False)
    assert ">guessing</text>" in both
    assert ">guessing</text>" not in plots.attack_curves([pgd], None)


def test_grey_levels_label_the_axis_where_all_radii_are_some():
    levels = Curve((0.0, 8 / 255), *((0.9, 0.4),) * 3)
    assert ">8/255</text>" in plots.attack_curves([Line(BLUE, levels, "PGD")], None)
    assert "/255" not in plots.attack_curves([Line(BLUE, LINE, "PGD")], None)


BINS = ((0.0, 1.0, 2.0), (1.0, 3.0))
BARS = Reliability((0.0, 0.5, 1.0), (2, 8), (0.4, 0.9), (0.5, 0.7), (0.1, 0.4), (0.9, 0.9))
DRAWINGS = {
    "reliability": lambda v: plots.reliability_diagram(
        Reliability(BARS.edges, BARS.count, BARS.confidence, (0.5, v), BARS.low, BARS.high), BLUE
    ),
    "ridges": lambda v: plots.score_ridges(ScoreHistogram(BINS[0], (1, 3), {"a": (1, 10 * v)}), BLUE, {}),
    "AUROC of ridges": lambda v: plots.score_ridges(ScoreHistogram(BINS[0], (1, 3), {"a": (1, 1)}), BLUE, {"a": v}),
    "attacks": lambda v: plots.attack_curves([Line(BLUE, Curve((0, 1), (1, v), (0, 0), (1, 1)), "PGD")], None),
    "whiskers": lambda v: plots.attack_curves([Line(BLUE, Curve((1,), (0.9,), (v,), (1,)), "black box")], None),
    "severities": lambda v: plots.severity_curves(
        [Line(BLUE, Curve((1, 2), (0, v), (0, 0), (1, 1)), "")], top=1, percent=True
    ),
    "histogram": lambda v: plots.histogram((BINS[0], (1, 10 * v)), BLUE, "x"),
    "histogram beneath": lambda v: plots.histogram(BINS, BLUE, "x", beside=(BINS[0], (1, 10 * v))),
    "band of chains": lambda v: plots.over_steps([Line(BLUE, Curve((0, 9), (0, 0), (0, v), (1, 1)), "")], []),
    "level of data": lambda v: plots.over_steps([Line(BLUE, LINE, "")], [], band=(0, v, 1)),
    "band of data": lambda v: plots.over_steps([Line(BLUE, LINE, "")], [], band=(0, 0.1, v)),
    "life of chains": lambda v: plots.over_steps([Line(BLUE, Curve((0, 9), *((0, 1),) * 3), "")], [(BLUE, 10 * v)]),
    "acceptance": lambda v: plots.temperatures((1, v), BLUE),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_value_moves_its_drawing(name):
    draw = DRAWINGS[name]
    assert draw(0.2) == draw(0.2)
    assert draw(0.2) != draw(0.7)
