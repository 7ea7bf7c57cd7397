"""What docs/stability.md shows can be run: commands parse, alone and with their remedy, and pictures are there."""

import re
import shlex
from pathlib import Path

import pytest

from jemstone.parsers import expand, make_parser

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
PAIRS = re.findall(r"^    (jemstone train .*)\n    \.\.\. (.*)$", TEXT, flags=re.MULTILINE)


def settings_of(command):
    arguments = shlex.split(command)[1:]
    return make_parser(arguments).parse_args(expand(arguments)).train


@pytest.mark.parametrize(("command", "remedy"), PAIRS)
def test_a_failure_and_its_remedy_can_be_run(command, remedy, monkeypatch):
    monkeypatch.chdir(ROOT)
    failing, mended = settings_of(command), settings_of(f"{command} {remedy}")
    assert failing.steps == mended.steps == 300  # docs/atlas.yaml was read
    assert failing.recovery.attempts == 0
    assert failing.limits.window == 0
    assert failing != mended


def test_every_failure_has_its_pair_and_its_picture():
    atlas = TEXT.split("## Atlas")[1].split("\n## ")[0]
    assert len(PAIRS) == atlas.count("\n### ") == 7
    for picture in re.findall(r"\]\((images/[^)]+)\)", TEXT):
        assert (ROOT / "docs" / picture).is_file()
