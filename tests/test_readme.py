"""What the README shows works: its Python runs, its commands parse, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jemstone import cli
from jemstone.parsers import expand, make_parser
from jemstone.training.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
COMMANDS = [
    line.split("#")[0].strip()
    for kind, block in BLOCKS
    if kind == ""
    for line in block.splitlines()
    if line.startswith("jemstone ")
]


def test_the_python_example_runs_and_is_short(tmp_path, monkeypatch):
    _, code = PYTHON
    assert len(code.strip().splitlines()) < 15
    small = RECIPES["jem-small"].config.with_values(steps=3, chains={"steps": 2, "buffer_size": 64})
    monkeypatch.setitem(RECIPES, "jem-small", RECIPES["jem-small"]._replace(config=small))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["scores"].shape == (360,)
    assert names["images"].shape == (10, 1, 8, 8)
    assert (tmp_path / "runs" / "mine" / "config.json").exists()


def test_three_lines_wrap_and_score(tmp_path, monkeypatch, capsys):
    pytest.importorskip("timm")
    from timm import create_model

    code, _ = PYTHON
    assert len([line for line in code.splitlines() if line.strip()]) == 3
    rng = np.random.default_rng(0)
    for name in ("cat", "cow", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(25):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                tmp_path / "photos" / name / f"{i}.png"
            )
    (tmp_path / "photos" / "dog" / "0.png").rename(tmp_path / "photo.jpg")  # a PNG, whatever it is called
    monkeypatch.setattr("timm.create_model", lambda name, **others: create_model("resnet10t", num_classes=3))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert re.match(r"Prediction\(label='(cat|cow|dog)', .*accepted=(True|False)", capsys.readouterr().out)


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
