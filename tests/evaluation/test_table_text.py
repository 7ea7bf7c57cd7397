"""Tables as text, against golden strings."""

import json

import pytest

from jemstone.evaluation.compare import Cell, Column, Comparison, Row
from jemstone.evaluation.table_text import as_json, as_latex, as_markdown, cell_text, footnotes, mark

TABLE = Comparison(
    columns=(
        Column("accuracy", "Accuracy (%)", "higher"),
        Column("ood/a_b/max_probability/fpr95", "FPR95, a_b, max p(y|x) (%)", "lower"),
        Column("temperature", "Temperature", ""),
    ),
    rows=(
        Row("base_1", (Cell(0.9, 0.85, 0.94, 200), Cell(0.4, 0.3, 0.5, 90), Cell(1.25)), path="runs/base_1", seed=3),
        Row(
            "a|b & 50%",
            (
                Cell(0.955, 0.93, 0.97, 200, 0.001, 0.002, True, True),
                Cell(0.6, 0.5, 0.7, 90, 0.01, 0.01, True, False),
                None,
            ),
        ),
        Row("JEM", (Cell(0.929, quoted=True), None, None), source="Grathwohl et al., ICLR 2020", caveat="not ours"),
    ),
    notes=("Not tested: temperature. Reason: neither direction is better.",),
    reference="base_1",
    data="cifar-10",
    protocol="v1",
    tests=2,
    resamples=10_000,
    alpha=0.05,
    seed=0,
)

MARKDOWN = r"""| Run | Accuracy (%) ↑ | FPR95, a_b, max p(y\|x) (%) ↓ | Temperature |
| --- | ---: | ---: | ---: |
| base_1 | 90.0 [85.0, 94.0] | 40.0 [30.0, 50.0] | 1.250 |
| a\|b & 50% | 95.5\* [93.0, 97.0] | 60.0† [50.0, 70.0] | - |
| JEM (published: Grathwohl et al., ICLR 2020) | 92.9‡ | - | - |

- \* better, † worse than base_1: paired bootstrap over test examples, 10,000 resamples, two-sided, Holm's correction for 2 tests, alpha 0.05. No mark: not significant, or not tested. In brackets: 95 % intervals.
- ‡ second-hand: quoted elsewhere, not read in the paper itself.
- JEM: Grathwohl et al., ICLR 2020; not ours.
- Not tested: temperature. Reason: neither direction is better.
"""  # noqa: E501

LATEX = r"""% Protocol v1, data cifar-10, reference base_1.
% * better, † worse than base_1: paired bootstrap over test examples, 10,000 resamples, two-sided, Holm's correction for 2 tests, alpha 0.05. No mark: not significant, or not tested. In brackets: 95 % intervals.
% ‡ second-hand: quoted elsewhere, not read in the paper itself.
% JEM: Grathwohl et al., ICLR 2020; not ours.
% Not tested: temperature. Reason: neither direction is better.
\begin{tabular}{lrrr}
\toprule
Run & Accuracy (\%) $\uparrow$ & FPR95, a\_b, max p(y\textbar{}x) (\%) $\downarrow$ & Temperature \\
\midrule
base\_1 & 90.0 [85.0, 94.0] & 40.0 [30.0, 50.0] & 1.250 \\
a\textbar{}b \& 50\% & 95.5$^{\ast}$ [93.0, 97.0] & 60.0$^{\dagger}$ [50.0, 70.0] & - \\
\midrule
JEM (published: Grathwohl et al., ICLR 2020) & 92.9$^{\ddagger}$ & - & - \\
\bottomrule
\end{tabular}
"""  # noqa: E501


def test_markdown():
    assert as_markdown(TABLE) == MARKDOWN


def test_latex():
    assert as_latex(TABLE) == LATEX


def test_json_holds_everything():
    read = json.loads(as_json(TABLE))
    assert read["rows"][1]["cells"][0] == {
        "value": 0.955, "low": 0.93, "high": 0.97, "n": 200, "p": 0.001, "p_adjusted": 0.002, "significant": True,
        "better": True, "quoted": False,
    }  # fmt: skip
    assert read["rows"][1]["cells"][2] is None
    assert read["columns"][1] == {"name": TABLE.columns[1].name, "title": TABLE.columns[1].title, "better": "lower"}
    assert (read["tests"], read["reference"], read["notes"]) == (2, "base_1", list(TABLE.notes))
    assert read["rows"][0]["seed"] == 3


def alone(label, value=1.0):
    row = Row(label, (Cell(value),))
    return Comparison((Column("nll", "NLL", ""),), (row,), (), label, "d", "v1", 0, 10, 0.05, 0)


def test_json_has_no_nan():
    assert json.loads(as_json(alone("a", float("nan"))))["rows"][0]["cells"][0]["value"] is None


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (r"a\b", r"a\textbackslash{}b"),
        ("{x}_#1", r"\{x\}\_\#1"),
        ("5 $ & 3 %", r"5 \$ \& 3 \%"),
        ("~^", r"\textasciitilde{}\textasciicircum{}"),
        ("L∞ ≤ 0.1", r"L$\infty$ $\le$ 0.1"),
        ("two\nlines", "two lines"),
    ],
)
def test_latex_escapes_what_would_not_compile(label, expected):
    assert f"\n{expected} & " in as_latex(alone(label))


def test_no_line_of_a_name_escapes_its_comment():
    text = as_latex(alone("a\n\\input{evil}"))
    assert all(line.startswith("%") or "evil" not in line or "textbackslash" in line for line in text.splitlines())


def test_markdown_escapes_what_would_break_a_row():
    assert r"| a\|b\*\`\<i> |" in as_markdown(alone("a|b*`<i>"))


def test_without_tests_the_foot_says_so():
    assert footnotes(alone("a"))[0].startswith("No difference was tested")
    assert "‡" not in " ".join(footnotes(alone("a")))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (Cell(1.0, p=0.2, better=True), ""),
        (Cell(1.0, p=0.001, significant=True, better=True), "*"),
        (Cell(1.0, p=0.001, significant=True, better=False), "†"),
        (Cell(1.0, quoted=True), "‡"),
        (Cell(1.0), ""),
    ],
)
def test_only_what_is_significant_is_marked(cell, expected):
    assert mark(cell) == expected


def test_cells():
    assert cell_text("accuracy", None) == "-"
    assert cell_text("nll", Cell(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"
    assert cell_text("generation/fid", Cell(9.4)) == "9.40"
