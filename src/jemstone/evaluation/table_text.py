"""A comparison as text: Markdown, LaTeX, JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

from jemstone.evaluation.compare import Cell, Column, Comparison, Row
from jemstone.evaluation.titles import number
from jemstone.runs import strict

ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}
BETTER, WORSE, QUOTED = "*", "†", "‡"

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "∞": r"$\infty$",
    "≤": r"$\le$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    BETTER: r"$^{\ast}$",
    WORSE: r"$^{\dagger}$",
    QUOTED: r"$^{\ddagger}$",
}


def mark(cell: Cell) -> str:
    """`*` for significantly better than the reference, `†` for worse, `‡` for quoted second-hand, else nothing."""
    if cell.quoted:
        return QUOTED
    return (BETTER if cell.better else WORSE) if cell.significant and cell.better is not None else ""


def footnotes(comparison: Comparison) -> list[str]:
    """What stands under a table, line by line: the marks and their test, sources of published rows, notes."""
    lines = []
    if comparison.tests:
        lines.append(
            f"{BETTER} better, {WORSE} worse than {comparison.reference}: paired bootstrap over test examples, "
            f"{comparison.resamples:,} resamples, two-sided, Holm's correction for {comparison.tests} tests, alpha "
            f"{comparison.alpha:g}. No mark: not significant, or not tested. In brackets: 95 % intervals."
        )
    else:
        lines.append("No difference was tested. In brackets: 95 % intervals.")
    if any(cell and cell.quoted for row in comparison.rows for cell in row.cells):
        lines.append(f"{QUOTED} second-hand: quoted elsewhere, not read in the paper itself.")
    lines += [
        f"{row.label}: {row.source}" + (f"; {row.caveat}." if row.caveat else ".") for row in _published(comparison)
    ]
    return lines + list(comparison.notes)


def as_markdown(comparison: Comparison) -> str:
    """A table as GitHub renders it, one run per row, with its footnotes as a list."""
    head = ["Run", *(column.title + ARROWS[column.better] for column in comparison.columns)]
    lines = [_line(head), _line(["---"] + ["---:"] * len(comparison.columns))]
    lines += [_line([_name(row), *_texts(comparison.columns, row)]) for row in comparison.rows]
    return "\n".join([*lines, "", *(f"- {_markdown(note)}" for note in footnotes(comparison))]) + "\n"


def as_latex(comparison: Comparison) -> str:
    """A `tabular` for the booktabs package; what belongs into the caption stands in front of it, as comments."""
    about = f"Protocol {comparison.protocol}, data {comparison.data}, reference {comparison.reference}."
    head = ["Run", *(column.title + ARROWS[column.better] for column in comparison.columns)]
    own = [row for row in comparison.rows if not row.source]
    lines = [f"% {_one_line(note)}" for note in (about, *footnotes(comparison))]
    lines += [r"\begin{tabular}{l" + "r" * len(comparison.columns) + "}", r"\toprule", _latex_line(head), r"\midrule"]
    lines += [_latex_line([_name(row), *_texts(comparison.columns, row)]) for row in own]
    published = _published(comparison)
    if published:
        lines += [r"\midrule", *(_latex_line([_name(row), *_texts(comparison.columns, row)]) for row in published)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def as_json(comparison: Comparison) -> str:
    """All of the comparison, with full precision; null stands for what is not finite, as JSON knows no such number."""
    return json.dumps(strict(asdict(comparison)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def cell_text(name: str, cell: Cell | None) -> str:
    """One cell of the result `name` as tables print it: value, mark, interval; a dash where there is none."""
    if cell is None:
        return "-"
    text = number(name, cell.value) + mark(cell)
    if cell.low is None or cell.high is None:
        return text
    return f"{text} [{number(name, cell.low)}, {number(name, cell.high)}]"


def _texts(columns: tuple[Column, ...], row: Row) -> list[str]:
    return [cell_text(column.name, cell) for column, cell in zip(columns, row.cells, strict=True)]


def _name(row: Row) -> str:
    return f"{row.label} (published: {row.source})" if row.source else row.label


def _published(comparison: Comparison) -> list[Row]:
    return [row for row in comparison.rows if row.source]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(_markdown(cell) for cell in cells) + " |"


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*`<])", r"\\\1", _one_line(text))


def _latex_line(cells: list[str]) -> str:
    return " & ".join("".join(_LATEX.get(c, c) for c in _one_line(cell)) for cell in cells) + r" \\"


def _one_line(text: str) -> str:
    return " ".join(text.split())
