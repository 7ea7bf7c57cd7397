"""The page: one file, whole, true to the runs, and safe with any name in it."""

import ast
import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jemstone.report
from jemstone.errors import RunError
from jemstone.report import write_report

SECTIONS = [
    *("results", "ood", "corruptions", "calibration", "robustness", "refinement", "distal", "samples", "long_run"),
    *("likelihood", "training", "settings", "protocol"),
]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(tmp_path: Path, *runs: Path) -> str:
    return write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")


def pair(build_run, folder: Path) -> tuple[Path, Path]:
    plain = {"jem": False, "accuracy": 0.981, "ood": {"letters": 0.6, "noise": 0.98}}
    return build_run(folder / "jem"), build_run(folder / "plain", **plain)


@pytest.fixture
def two(build_run, tmp_path) -> tuple[Path, Path]:
    return pair(build_run, tmp_path)


@pytest.fixture(scope="module")
def compared(build_run, tmp_path_factory) -> tuple[str, tuple[Path, Path]]:
    """The page of two whole runs, made once, and the runs."""
    folder = tmp_path_factory.mktemp("pair")
    runs = pair(build_run, folder)
    text = page(folder, *runs)
    assert not [*folder.glob("*.tmp"), *folder.glob(".*")]
    return text, runs


def test_the_page_is_one_file_that_loads_nothing(compared):
    text, _ = compared
    parsed = Page(text)
    assert parsed.open == []
    assert not parsed.all("script")
    assert not parsed.all("link")
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), (tag, target)
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 3_000_000
    assert all(image["alt"] for image in parsed.all("img"))


def test_pictures_load_nothing_either(compared):
    for image in Page(compared[0]).all("img"):
        kind, data = image["src"].split(";base64,")
        if kind == "data:image/svg+xml":
            drawing = base64.b64decode(data).decode()
            assert not re.search(r'(?:href|src)="(?!#)', drawing)
            assert "<script" not in drawing


def test_every_section_is_there_and_in_the_navigation(compared):
    parsed = Page(compared[0])
    assert [s["id"] for s in parsed.all("section")] == SECTIONS
    assert [a["href"] for a in parsed.all("a")] == [f"#{name}" for name in SECTIONS]


FIGURES = {
    "ood": ["Histograms of log p(x) for plain", "Histograms of approximate mass for jem"],
    "corruptions": ["Accuracy over the severity of blur", "Expected calibration error", "AUROC of log p(x), clean"],
    "calibration": [f"Reliability diagram of {run}, {what}" for run in ("jem", "plain") for what in
                    ("as trained", "temperature-scaled", "bins of equal count")],
    "robustness": ["Accuracy under L∞ attack", "Accuracy under L2 attack", "Images from jem: attacked"],
    "refinement": ["Accuracy after 0 sampling steps", "Accuracy after 1 sampling steps"],
    "distal": ["probability that jem ends with", "log p(x) of plain: inputs made from noise"],
    "samples": ["Images from jem: fresh", "Images from plain: data", "Distances of samples of plain"],
    "long_run": ["Energies of long chains of jem", "Diversity, that of", "Confidence of", "Images from jem: long_run"],
    "likelihood": ["Histograms of log p(x) of jem", "log weights of plain", "Acceptance of the annealed chains of jem"],
    "training": ["Energy gap", "Validation accuracy", "Class negative log-likelihood"],
}  # fmt: skip


@pytest.mark.parametrize("section", FIGURES)
def test_every_figure_stands_in_its_section(compared, section):
    body = compared[0].split(f'<section id="{section}">')[1].split("</section>")[0]
    alts = [image["alt"] for image in Page(body).all("img")]
    for words in FIGURES[section]:
        assert any(words in alt for alt in alts), words


def test_every_figure_is_told_how_to_read_in_one_sentence(compared):
    text = compared[0]
    for group in text.split('<div class="panels ')[1:]:
        panels, after = group.split("</div>", 1)
        told = after.lstrip().startswith('<p class="how">How to read it: ')
        assert told or panels.count("<figure") == panels.count("How to read it: ")
    for sentence in re.findall("How to read it: ([^<]+)<", text):
        assert sentence.endswith(".")
        assert ". " not in sentence, sentence


def test_the_numbers_are_those_of_the_results(compared):
    shown = {float(cell["value"]) for cell in Page(compared[0]).all("data")}
    written = {row["value"] for path in compared[1] for row in json.loads((path / "results.json").read_text())}
    figures = {0.125, 0.0, 21.5, 23.5}  # zero gradients, accuracy at the huge radius, FID by class
    assert shown == written | figures


def test_temperature_scaling_stands_beside_what_it_must_be_compared_with(compared):
    head = compared[0].split('<section id="results">')[1].split("</table>")[0]
    rows = re.findall(r'<th scope="row">([^&]+)&nbsp;', head)
    assert rows == [
        *("Accuracy, %", "Expected calibration error (ECE), %", "The same after temperature scaling, %"),
        *("AUROC of log p(x), mean over near sets", "AUROC of log p(x), mean over far sets"),
        *("Under PGD, L∞\u00a0≤\u00a00.05, %", "FID, samples of p(x)", "log p(x) of test inputs, nats"),
    ]
    assert "after temperature scaling, T = 1.7, ECE 1.2\u00a0%" in compared[0]


def test_long_groups_are_folded_and_short_ones_not(tmp_path, make_run, undrawn):
    robust = {f"pgd_linf/{k / 100:g}": 0.5 for k in range(1, 9)}
    body = page(tmp_path, make_run(robust=robust)).split('<section id="ood">')[0]
    assert "<summary>Accuracy under attack (8 numbers)</summary>" in body
    assert body.count("Accuracy under attack") == 1
    assert '<tr class="group"><th colspan="3" scope="rowgroup">Classification</th></tr>' in body


def test_samples_stand_beside_their_floor_and_legacy_is_called_so(compared):
    body = compared[0].split('<section id="samples">')[1].split("</section>")[0]
    assert "test inputs: the floor" in body
    assert '<data value="12.345">12.345</data>' in body
    assert '<data value="3.5">3.500</data>' in body
    legacy = body.split("<h3>Legacy</h3>")[1].split("</table>")[0]
    assert '<data value="7.25">7.250</data>' in legacy
    assert "It selects, and so it flatters." in legacy


def test_printed_text_rounds_the_exact_number(compared):
    text, _ = compared
    assert '<data value="0.9722">97.2</data>' in text
    assert '<data value="0.912">0.912</data>' in text
    assert "95.2 – 99.2" in text


def test_bold_marks_disjoint_intervals_only_and_the_rule_is_told(compared):
    text, _ = compared
    assert '<strong><data value="0.912">' in text  # letters: 0.912 against 0.6, half-widths 0.02
    assert '<strong><data value="0.987">' not in text  # noise: 0.987 against 0.98
    assert '<strong><data value="0.981">' not in text  # accuracy: 0.981 against 0.9722
    assert "Bold marks a run whose interval lies entirely on the better side" in text


def test_one_run_makes_a_page_without_comparison(tmp_path, make_run, undrawn):
    text = page(tmp_path, make_run("alone"))
    assert "alone on digits" in text
    assert "Bold marks" not in text
    assert "What differs" not in text


@pytest.mark.parametrize(
    ("part", "hint"),
    [
        ("metrics", "jem has no training on record: its metrics.jsonl is missing or empty."),
        ("results", "jem has no results yet. To make them: <code>jemstone evaluate "),
        ("figures", "jem has no reliability diagram yet. To measure: <code>jemstone evaluate "),
        ("samples", "jem has no pictures of samples yet. To draw some: <code>jemstone sample "),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path, make_run, undrawn, part, hint):
    text = page(tmp_path, make_run(missing=(part,)), make_run("whole"))
    assert hint in text
    assert hint.replace("jem has", "whole has") not in text


def test_a_section_that_no_run_has_is_left_out_and_named_once(tmp_path, two, undrawn, edit):
    for path in two:
        edit(path / "figures.json", lambda figures: [figures["sections"].pop(n) for n in ("distal", "long_run")])
        for name in ("long_run", "attacked"):
            (path / "samples" / f"{name}.png").unlink()
    text = page(tmp_path, *two)
    gone = ("distal", "long_run")
    assert [s["id"] for s in Page(text).all("section")] == [name for name in SECTIONS if name not in gone]
    assert [a["href"] for a in Page(text).all("a")] == [f"#{name}" for name in SECTIONS if name not in gone]
    for path in two:
        hint = f"Not measured in {path.name}: distal adversarials, long-run chains. To measure:"
        assert f"{hint} <code>jemstone evaluate {path} --only distal long_run</code>" in text
        assert text.count("--only distal") == 2


def test_a_section_that_one_run_lacks_says_so_in_its_place(tmp_path, two, undrawn, edit):
    edit(two[0] / "figures.json", lambda figures: figures["sections"].pop("refinement"))
    edit(two[1] / "figures.json", lambda figures: figures["sections"].update(long_run={}))
    text = page(tmp_path, *two)
    refinement, long_run = (
        text.split(f'<section id="{n}">')[1].split("</section>")[0] for n in ("refinement", "long_run")
    )
    assert (
        f"jem has no refinement curves yet. To measure: <code>jemstone evaluate {two[0]} --only refinement"
        in refinement
    )
    assert "plain has no long-run chains: there was nothing to measure" in long_run
    assert "--only" not in long_run
    key = refinement.split('<ul class="key">')[1].split("</ul>")[0]  # colours of the runs that are drawn, no others
    assert "plain" in key
    assert "jem" not in key


def test_the_protocol_tells_settings_cost_and_hardware(compared):
    body = compared[0].split('<section id="protocol">')[1]
    for words in ('<td colspan="2">v1</td>', "[0.05, 0.1]", "1.5 s", "9.5 s", "cpu (some processor)", "2026-01-02"):
        assert words in body
    assert "plain: Attacks ran on 100 test images." in body


def test_warnings_come_before_the_numbers_grouped_by_name(tmp_path, two, undrawn, edit, doubt):
    other = doubt | {"section": "generation", "text": "31 % <outside>"}
    small = {"section": "ood", "name": "small-n", "text": "only 12 inputs", "meaning": "The interval is the message."}
    edit(two[0] / "figures.json", lambda figures: figures.update(warnings=[doubt, other]))
    edit(two[1] / "figures.json", lambda figures: figures.update(warnings=[doubt, small]))
    text = page(tmp_path, *two)
    header, rest = text.split("</header>")
    cards = header.split('<ul class="doubts">')[1].split("<h3>")[1:]
    assert [card.split("</code>")[0] for card in cards] == ["<code>chains-not-mixed", "<code>small-n"]
    assert cards[0].count("Samples reflect the start.") == 1
    shared, own = cards[0].split("<li>")[1:3]
    assert shared.count("swatch") == 2
    assert "in long_run</span> split R-hat of 64 chains is 36.8" in shared
    assert own.count("swatch") == 1
    assert "in generation</span> 31 % &lt;outside&gt;" in own
    assert "The interval is the message." in cards[1]
    assert '<a href="#warnings">' in rest
    assert Page(text).open == []


def test_without_warnings_there_is_no_such_part(compared):
    assert 'id="warnings"' not in compared[0]
    assert "#warnings" not in compared[0].split("</style>")[1]


def test_an_evaluation_of_an_earlier_step_is_warned_of(tmp_path, two, undrawn, edit):
    edit(two[0] / "figures.json", lambda figures: figures.update(step=450))
    header = page(tmp_path, *two).split("</header>")[0]
    assert "jem was evaluated at step 450 and has been trained to step 600 since" in header
    assert f"<code>jemstone evaluate {two[0]}</code>" in header
    assert "plain was evaluated" not in header


def test_an_imported_run_is_told_from_one_that_did_not_finish(tmp_path, make_run, undrawn, edit):
    path = make_run("theirs", missing=("metrics",))
    origin = {"file": "ckpt_<40>.pt", "sha256": "0123456789abcdef" * 4, "layout": "jem++", "chains": 10000}
    edit(path / "config.json", lambda config: config.update(imported=origin))
    (path / "events.jsonl").write_text(json.dumps({"event": "imported", "step": 0, **origin}) + "\n")
    text = page(tmp_path, path)
    words = "imported from ckpt_&lt;40&gt;.pt, layout jem++, with 10,000 chains (SHA-256 0123456789ab…)."
    assert f"theirs was not trained here: it was {words}" in text.split("</header>")[0]
    assert f"theirs has no training on record: it was {words}" in text
    assert "no finish on record" not in text
    assert "jemstone train" not in text


def test_a_run_of_which_only_the_config_is_there_has_its_page(tmp_path, make_run):
    path = make_run(missing=("metrics", "results", "figures", "samples"))
    (path / "events.jsonl").unlink()
    text = page(tmp_path, path)
    assert "Nothing has been evaluated yet." in text
    assert f"<code>jemstone evaluate {path}</code>" in text
    assert [s["id"] for s in Page(text).all("section")] == ["results", "training", "settings"]
    assert Page(text).open == []


def test_unknown_results_and_settings_are_shown(tmp_path, make_run, undrawn):
    path = make_run()
    rows = json.loads((path / "results.json").read_text())
    rows += [{"name": "fid/train", "value": 17.25, "low": None, "high": None, "n": None}]
    rows += [{"name": "ood/svhn/new_score/auroc", "value": 0.77, "low": 0.7, "high": 0.8, "n": 9}]
    (path / "results.json").write_text(json.dumps(rows))
    text = page(tmp_path, path)
    for words in ("Other measurements", "fid/train", '<data value="17.25">17.250</data>', "svhn", "new_score"):
        assert words in text


def test_divergence_resumption_and_an_open_end_come_first(tmp_path, make_run, undrawn):
    path = make_run(steps=200)
    events = [{"event": "started", "step": 0}, {"event": "diverged", "step": 150, "reason": "gap is NaN"}]
    events += [{"event": "resumed", "step": 100}]
    (path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    header = page(tmp_path, path).split("</header>")[0]
    assert "jem diverged at step 150: gap is NaN." in header
    assert "jem was resumed at step 100." in header
    assert "jem has no finish on record: its log ends after step 200." in header


def test_runs_on_different_data_or_protocols_are_warned_of(tmp_path, two, undrawn, edit):
    edit(two[1] / "config.json", lambda config: config["data"].update(digest="other"))
    edit(two[1] / "figures.json", lambda figures: figures["protocol"]["robustness"].update(images=7))
    header = page(tmp_path, *two).split("</header>")[0]
    assert "do not share the same data" in header
    assert "different protocols in robustness (listed at the end)" in header
    assert "different out-of-distribution sets" not in header


def test_a_section_that_only_one_run_has_is_no_other_protocol(tmp_path, two, undrawn, edit):
    edit(two[1] / "figures.json", lambda figures: figures["protocol"].pop("robustness"))
    assert "different protocols" not in page(tmp_path, *two)
    edit(two[1] / "figures.json", lambda figures: figures["protocol"].update(seed=3))
    assert "under different protocols (listed at the end)" in page(tmp_path, *two)


def test_runs_against_other_sets_are_warned_of(tmp_path, two, undrawn, edit):
    edit(two[1] / "figures.json", lambda figures: figures["sections"]["ood"].update(far=["noise", "svhn"]))
    text = page(tmp_path, *two)
    assert "measured against different out-of-distribution sets" in text
    assert "AUROC" not in text.split("</p>")[1]  # nor does the sentence compare their means


def test_hostile_names_stay_text(tmp_path, make_run):
    evil = '<script>alert("x")</script>'
    path = make_run("a b'&c", class_names=[evil, "b"], network=evil, ood={f"{evil} $x_1$ 数字": 0.9, "\\frac{": 0.5})
    (path / "samples" / "fresh.json").write_text(json.dumps({"caption": evil}))
    text = page(tmp_path, path, make_run("plain"))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert Page(text).open == []


def test_a_damaged_picture_is_left_out_and_a_large_one_shrunk(tmp_path, make_run, undrawn):
    path = make_run()
    (path / "samples" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    noise = np.random.default_rng(0).integers(0, 255, (1600, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path / "samples" / "wide.png", compress_level=1)
    text = page(tmp_path, path)
    assert "data:image/jpeg" in text
    assert "torn cannot be shown" in text
    assert len(text) < 3_000_000


def test_odd_figures_never_stop_the_page(tmp_path, make_run, edit):
    """Drawn in earnest: empty bins, nothing but nulls, one point, equal edges."""
    path = make_run(steps=10)

    def odd(figures):
        found = figures["sections"]
        empty = {"count": [0] * 10, **dict.fromkeys(("confidence", "accuracy", "low", "high"), [None] * 10)}
        found["calibration"] |= {"reliability": {"edges": [i / 10 for i in range(11)], **empty}, "scaled": None}
        found["calibration"]["reliability_equal_mass"] = {"edges": [1.0] * 11, **empty}
        found["ood"]["scores"] = {
            "log_density": {"edges": [0, 1, 2], "test": [0, 0], "ood": {"none": [0, 0]}},
            "max_probability": {"edges": [0, 1], "test": [3], "ood": {}},
            "approximate_mass": {"edges": [0, None], "test": [3], "ood": {"a": [1]}},
        }
        grey = {"eps": [0, 4 / 255, 8 / 255], "accuracy": [0.9, None, 0.1], "low": [None] * 3, "high": [None] * 3}
        none = {"eps": [], "accuracy": [], "low": [], "high": []}
        found["robustness"] |= {"curves": {"linf": grey, "l2": none, "l1": {}}, "autoattack": {"l2": none}}
        found["refinement"] |= {"curves": {"0": none, "many": grey}, "transfer": {}}
        nulls = dict.fromkeys(("value", "low", "high"), [None] * 5)
        found["corruptions"]["kinds"] = {"blur": {"accuracy": nulls, "ece": nulls}, "fog": {}}
        del found["corruptions"]["clean"]
        flat = {"edges": [0.0, 1.0], "counts": [0]}
        found["distal"]["probability"] = flat
        found["generation"]["nearest"] = {"edges": [0, 1], "samples": [0], "test": [0]}
        row = {name: [1.0] for name in ("median", "low", "high")}
        found["long_run"] |= {"steps": [0], "energy": row, "diversity": [None], "confidence": [0.5], "r_hat": None}
        found["likelihood"] |= {"test": flat, "train": flat, "log_weights": flat, "acceptance": [0.5]}

    edit(path / "figures.json", odd)
    (path / "results.json").write_text('[{"name": "accuracy", "value": NaN}, {"name": "ece"}, 3]')
    text = page(tmp_path, path)
    assert "not a number" in text
    assert text.count("does not have the expected form") == 2
    for part in ("ood/scores/approximate_mass", "robustness/curves/l1"):
        assert f"&#39;{part}&#39; does not have the expected form" in text


def test_chains_that_were_never_finite_leave_an_empty_section_out(tmp_path, make_run, undrawn, edit):
    path = make_run()
    none = {"steps": [], "energy": {"median": [], "low": [], "high": []}, "diversity": [], "confidence": []}
    edit(path / "figures.json", lambda figures: figures["sections"]["long_run"].update(none))
    (path / "samples" / "long_run.png").unlink()
    assert '<section id="long_run">' not in page(tmp_path, path)


def test_errors_leave_an_older_report_as_it_was(tmp_path, make_run):
    out = tmp_path / "report.html"
    out.write_text("older")
    with pytest.raises(RunError, match="nowhere does not exist"):
        write_report([make_run(), tmp_path / "nowhere"], out)
    with pytest.raises(RunError, match="at least one run"):
        write_report([], out)
    assert out.read_text() == "older"


def test_the_same_runs_make_the_same_page(tmp_path, make_run):
    path = make_run(steps=100, robust={})
    assert page(tmp_path, path) == page(tmp_path, path)


def test_the_report_imports_no_torch():
    folder = Path(jemstone.report.__file__).parent
    allowed = {
        "jemstone.errors",
        "jemstone.runs",
        "jemstone.report",
        *(f"jemstone.report.{f.stem}" for f in folder.glob("*.py")),
    }
    for file in [*folder.glob("*.py"), folder.parent / "errors.py", folder.parent / "runs.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] != "torch", file
                assert not name.startswith("jemstone") or name in allowed, (file, name)


def test_the_report_runs_without_torch_and_without_global_figures(tmp_path, make_run):
    """The rest of the package may import torch: a bare package of the same name and place stands in for it."""
    code = """
import sys, types
from pathlib import Path

package = types.ModuleType("jemstone")
package.__path__ = [sys.argv[1]]
sys.modules["jemstone"] = package
from jemstone.report import write_report

write_report([Path(sys.argv[2])], Path(sys.argv[3]))
assert not {"torch", "matplotlib.pyplot"} & set(sys.modules)
"""
    root = Path(jemstone.report.__file__).parents[1]
    command = [sys.executable, "-c", code, str(root), str(make_run()), str(tmp_path / "report.html")]
    subprocess.run(command, check=True, timeout=120)
