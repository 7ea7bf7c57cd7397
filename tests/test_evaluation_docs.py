"""docs/evaluation.md says what the code has: budgets, sections, warnings, results; its commands and its Python run."""

import re
import shlex
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch

from jemstone.evaluation import BUDGETS, HIGHER_IS_BETTER, SCORES, SECTIONS, WARNINGS
from jemstone.evaluation.foreign import BUILTIN
from jemstone.parsers import expand, make_parser

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("evaluation.md", "runs.md", "log.md")}
TEXT = PAGES["evaluation.md"]
COMMANDS = [
    line.split("#")[0].strip()
    for text in PAGES.values()
    for kind, block in re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if not kind and line.startswith("jemstone ")
]


def part(title):
    return re.split(r"\n##+ ", TEXT.split(f"\n## {title}\n")[1])[0]


def rows(text):
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]


def settings():
    """By name in the table, what the three budgets have."""
    return {
        f"{section}.{field}": [getattr(getattr(budget, section), field) for budget in BUDGETS.values()]
        for section in SECTIONS
        for field in BUDGETS["standard"].__dataclass_fields__[section].default_factory().__dataclass_fields__
    }


def test_budgets_are_those_of_the_code():
    told = {row[0].split("`")[1]: row[1:] for row in rows(part("Budgets"))[2:]}
    for name, values in settings().items():
        if len(set(values)) > 1:
            shown = [
                ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}" for value in values
            ]
            assert told.pop(name) == shown
    assert not told


def test_settings_that_do_not_differ_are_told_with_their_section():
    titles = {"ood": "Out-of-distribution detection", "distal": "Distal inputs", "long_run": "Long run"}
    for name, values in settings().items():
        section, field = name.split(".")
        if len(set(values)) == 1:
            assert f"`{field}`" in part(titles.get(section, section.capitalize())), name


def test_every_warning_score_and_set_is_told():
    assert [row[0].strip("`") for row in rows(part("Warnings"))[2:]] == list(WARNINGS)
    for name in [*SCORES, *BUILTIN]:
        assert f"| `{name}` |" in part("Out-of-distribution detection")


def test_every_section_has_a_heading():
    titles = re.findall(r"^## (.*)$", TEXT, flags=re.MULTILINE)
    first = titles.index("Calibration")
    assert len(titles[first : titles.index("Warnings")]) == len(SECTIONS)


def test_directions_are_those_of_the_code():
    told = {
        name: row[2]
        for row in rows(TEXT)
        if len(row) > 3 and row[2] in ("higher", "lower")
        for name in re.findall(r"`([a-z_/A-Z]+)`", row[0])
    }
    for name, better in told.items():
        concrete = re.sub("KIND|SET|SCORE", "x", name)
        found = [up for pattern, up in HIGHER_IS_BETTER.items() if fnmatchcase(concrete, pattern)]
        assert concrete.startswith("...") or found[0] == (better == "higher"), name
    assert len(told) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    arguments = shlex.split(command)[1:]
    assert make_parser(arguments).parse_args(expand(arguments)).subcommand == arguments[0]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_something(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        file, _, anchor = target.partition("#")
        path = (ROOT / "docs" / file) if file else ROOT / "docs" / page
        assert path.is_file(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_the_python_runs():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    names: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        exec(code.replace("quick = replace(quick, seed=1", "quick = replace(quick, resamples=20, seed=1"), names)
    assert "ood/noisy/log_density/auroc" in [result.name for result in names["found"].results]
    assert names["outlier"](names["data"].test.inputs[:5]).shape == (5,)
