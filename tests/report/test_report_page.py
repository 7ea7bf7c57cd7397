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

SECTIONS = ["results", "ood", "calibration", "robustness", "training", "samples", "settings", "protocol"]
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


def test_every_section_and_figure_group_is_there(compared):
    text, _ = compared
    parsed = Page(text)
    assert [s["id"] for s in parsed.all("section")] == SECTIONS
    assert {a["href"] for a in parsed.all("a")} == {f"#{name}" for name in SECTIONS}
    alts = " ".join(image["alt"] for image in parsed.all("img"))
    for words in ("Reliability diagram of jem", "Reliability diagram of plain", "Histograms of log p(x) for plain"):
        assert words in alts
    for words in ("under L∞ attack", "under L2 attack", "Energy gap", "Validation accuracy", "Images from jem: fresh"):
        assert words in alts
    assert text.count("How to read it") == 5
    assert "post-hoc energy score (Liu et al. 2020)" in text


def test_the_numbers_are_those_of_the_results(compared):
    shown = [float(cell["value"]) for cell in Page(compared[0]).all("data")]
    written = [row["value"] for path in compared[1] for row in json.loads((path / "results.json").read_text())]
    assert sorted(shown) == sorted(written)


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
    assert "<b>Bold</b> marks a run whose interval lies entirely on the better side" in text


def test_one_run_makes_a_page_without_comparison(tmp_path, make_run):
    text = page(tmp_path, make_run("alone"))
    assert "alone on digits" in text
    assert "<b>Bold</b>" not in text
    assert "What differs" not in text


@pytest.mark.parametrize(
    ("part", "hint"),
    [
        ("metrics", "jem has no training on record"),
        ("results", "jem has no results yet. To make them: <code>jemstone evaluate "),
        ("figures", "jem has no reliability diagram yet. To make it: <code>jemstone evaluate "),
        ("samples", "jem has no samples yet. To make them: <code>jemstone sample "),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path, make_run, part, hint):
    text = page(tmp_path, make_run(missing=(part,)), make_run("whole"))
    assert hint in text
    assert hint.replace("jem has", "whole has") not in text


def test_a_run_of_which_only_the_config_is_there_has_its_page(tmp_path, make_run):
    path = make_run(missing=("metrics", "results", "figures", "samples"))
    (path / "events.jsonl").unlink()
    text = page(tmp_path, path)
    assert "Nothing has been evaluated yet." in text
    assert f"<code>jemstone evaluate {path}</code>" in text
    assert Page(text).open == []


def test_unknown_results_and_settings_are_shown(tmp_path, make_run):
    path = make_run()
    rows = json.loads((path / "results.json").read_text())
    rows += [{"name": "fid/train", "value": 17.25, "low": None, "high": None, "n": None}]
    rows += [{"name": "ood/svhn/new_score/auroc", "value": 0.77, "low": 0.7, "high": 0.8, "n": 9}]
    (path / "results.json").write_text(json.dumps(rows))
    text = page(tmp_path, path)
    for words in ("Other measurements", "fid/train", '<data value="17.25">17.250</data>', "svhn", "new_score"):
        assert words in text


def test_divergence_resumption_and_an_open_end_come_first(tmp_path, make_run):
    path = make_run(steps=200)
    events = [{"event": "started", "step": 0}, {"event": "diverged", "step": 150, "reason": "gap is NaN"}]
    events += [{"event": "resumed", "step": 100}]
    (path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    header = page(tmp_path, path).split("</header>")[0]
    assert "jem diverged at step 150: gap is NaN." in header
    assert "jem was resumed at step 100." in header
    assert "jem has no finish on record: its log ends after step 200." in header


def test_runs_on_different_data_or_protocols_are_warned_of(tmp_path, two):
    config = json.loads((two[1] / "config.json").read_text())
    config["data"]["digest"] = "other"
    (two[1] / "config.json").write_text(json.dumps(config))
    figures = json.loads((two[1] / "figures.json").read_text())
    figures["protocol"]["version"] = "v2"
    (two[1] / "figures.json").write_text(json.dumps(figures))
    header = page(tmp_path, *two).split("</header>")[0]
    assert "do not share the same data" in header
    assert "different protocols" in header


def test_hostile_names_stay_text(tmp_path, make_run):
    evil = '<script>alert("x")</script>'
    path = make_run("a b'&c", class_names=[evil, "b"], network=evil, ood={f"{evil} $x_1$ 数字": 0.9, "\\frac{": 0.5})
    (path / "samples" / "fresh.json").write_text(json.dumps({"caption": evil}))
    text = page(tmp_path, path, make_run("plain"))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert Page(text).open == []


def test_a_damaged_picture_is_left_out_and_a_large_one_shrunk(tmp_path, make_run):
    path = make_run()
    (path / "samples" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    noise = np.random.default_rng(0).integers(0, 255, (1600, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path / "samples" / "wide.png", compress_level=1)
    text = page(tmp_path, path)
    assert "data:image/jpeg" in text
    assert "torn cannot be shown" in text
    assert len(text) < 3_000_000


def test_odd_figures_never_stop_the_page(tmp_path, make_run):
    path = make_run(steps=10)
    figures = json.loads((path / "figures.json").read_text())
    bins = {"count": [0] * 10, **dict.fromkeys(("confidence", "accuracy", "low", "high"), [None] * 10)}
    figures["reliability"] |= bins
    figures["scores"] = {
        "log_density": {"edges": [0, 1, 2], "test": [0, 0], "ood": {"none": [0, 0]}},
        "max_probability": {"edges": [0, 1], "test": [3], "ood": {}},
        "approximate_mass": {"edges": [0, None], "test": [3], "ood": {"a": [1]}},
    }
    grey = {"eps": [0, 4 / 255, 8 / 255], "accuracy": [0.9, None, 0.1], "low": [None] * 3, "high": [None] * 3}
    figures["robustness"] = {"linf": grey, "l2": {"eps": [], "accuracy": [], "low": [], "high": []}, "l1": {}}
    (path / "figures.json").write_text(json.dumps(figures))
    (path / "results.json").write_text('[{"name": "accuracy", "value": NaN}, {"name": "ece"}, 3]')
    text = page(tmp_path, path)
    assert "not a number" in text
    assert "&#39;scores/approximate_mass&#39; does not have the expected form" in text


def test_errors_leave_an_older_report_as_it_was(tmp_path, make_run):
    out = tmp_path / "report.html"
    out.write_text("older")
    with pytest.raises(RunError, match="nowhere does not exist"):
        write_report([make_run(), tmp_path / "nowhere"], out)
    with pytest.raises(RunError, match="at least one run"):
        write_report([], out)
    assert out.read_text() == "older"


def test_the_same_runs_make_the_same_page(tmp_path, make_run):
    path = make_run(steps=100)
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
