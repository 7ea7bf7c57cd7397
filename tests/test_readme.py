"""What the README shows works: its Python runs, its commands parse, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from jemstone import cli
from jemstone.parsers import expand, make_parser
from jemstone.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for kind, block in BLOCKS
    if kind == ""
    for line in block.splitlines()
    if line.startswith("jemstone ")
]


def test_the_python_example_runs_and_is_short(tmp_path, monkeypatch):
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    assert len(code.strip().splitlines()) < 15
    small = RECIPES["jem-small"].config.with_values(steps=3, chains={"steps": 2, "buffer_size": 64})
    monkeypatch.setitem(RECIPES, "jem-small", RECIPES["jem-small"]._replace(config=small))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["scores"].shape == (360,)
    assert names["images"].shape == (10, 1, 8, 8)
    assert (tmp_path / "runs" / "mine" / "config.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    arguments = shlex.split(command)[1:]
    parsed = make_parser(arguments).parse_args(expand(arguments))
    assert parsed.subcommand == arguments[0]


def test_commands_cover_the_command_line():
    assert {command.split()[1] for command in COMMANDS} >= cli.COMMANDS.keys() - {"demo"}


TARGETS = sorted({target for target in re.findall(r"\]\(([^)#]+)\)", README) if not target.startswith("http")})


@pytest.mark.parametrize("target", TARGETS)
def test_links_and_pictures_lead_to_something(target):
    path = ROOT / target
    assert path.exists()
    assert any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0


def test_no_placeholder_is_left():
    assert not re.search(r"^\s*(RESULTS|TODO|TBD)\s*$", README, flags=re.MULTILINE)
