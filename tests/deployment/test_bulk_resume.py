"""A scoring that is killed and started again ends in the file of one that was never stopped, byte for byte."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jemstone import load_dataset
from jemstone.data.images import to_uint8
from jemstone.deployment.bulk import score
from jemstone.errors import ConfigError, RunError

parquet = pytest.importorskip("pyarrow.parquet")
ROWS = 150
# Where each process dies (`killed_scoring.py`), and how many rows the next one finds done before its first block of 16.
PLANS = {
    "in its first part": [(("in a part", 0), 0)],
    "while the manifest is written": [(("manifest half written", 0), 0)],
    "in a later part": [(("in a part", 2), 80)],
    "while a part is written": [(("part half written", 2), 80)],
    "before a part is renamed": [(("before a part is renamed", 2), 80)],
    "after a part is renamed": [(("after a part is renamed", 2), 120)],
    "while the whole is written": [(("whole half written", 0), None)],
    "after the whole is renamed": [(("after the whole is renamed", 0), None)],
    "while parts are removed": [(("while parts are removed", 0), None)],
    "three times": [(("in a part", 1), 40), (("part half written", 2), 80), (("in a part", 3), 120)],
}


@pytest.fixture(scope="module")
def killed(digits_run, predictor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    source = folder / "images.npz"
    images = (to_uint8(load_dataset("digits").test.inputs)[:ROWS, ..., 0] / 255).astype(np.float32)
    images[[5, 90], 0, 0] = np.nan  # rows with errors, too
    np.savez_compressed(source, images=images)
    plans = {"whole": [], **{name: [place for place, _ in plan] for name, plan in PLANS.items()}}
    script = Path(__file__).with_name("killed_scoring.py")
    done = subprocess.run(
        [sys.executable, script, digits_run.path, source, folder, json.dumps(plans)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, source, json.loads((folder / "outcomes.json").read_text())


@pytest.mark.parametrize("name", PLANS)
def test_killed_and_started_again(name, killed):
    folder, _, outcomes = killed
    plan, steps = PLANS[name], outcomes[name]
    assert [status for status, _, _ in steps] == [-signal.SIGKILL] * len(plan) + [0]
    whole, found = (folder / kind / "scores.parquet" for kind in ("whole", name))
    assert found.read_bytes() == whole.read_bytes()
    assert steps[-1][1] == ["scores.parquet"], "nothing is left beside it"
    for (_, done), (_, files, began) in zip(plan, steps[1:], strict=True):
        # The last part has 30 rows: its first block ends at 136.
        assert began == (None if done is None else done + 16), files


def test_the_output_appears_when_it_is_whole(killed):
    _, files, _ = killed[2]["while the whole is written"][0]
    assert "scores.parquet" not in files


def test_the_whole_has_every_row(killed):
    table = parquet.read_table(killed[0] / "whole" / "scores.parquet")
    assert table["id"].to_pylist() == [str(i) for i in range(ROWS)]
    assert [i for i, error in enumerate(table["error"].to_pylist()) if error] == [5, 90]


def stop_after(predictor, source, out, rows, **settings):
    """Score until `rows` are done, and stop there as Ctrl-C does."""

    def stop(done, _):
        if done >= rows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(predictor, source, out, part_rows=40, batch_size=16, on_progress=stop, **settings)


def test_what_was_begun_is_not_gone_on_with_otherwise(predictor, killed, tmp_path):
    folder, source, _ = killed
    out = tmp_path / "scores.parquet"
    whole = (folder / "whole" / "scores.parquet").read_bytes()
    stop_after(predictor, source, out, 100)
    assert not out.exists()
    with pytest.raises(ConfigError, match="another part_rows"):
        score(predictor, source, out, part_rows=30)
    other = tmp_path / "other.npz"
    other.write_bytes(source.read_bytes())
    with pytest.raises(ConfigError, match="another source"):
        score(predictor, other, out, part_rows=40)
    assert len(list((tmp_path / "scores.parquet.parts").glob("0*.parquet"))) == 2

    # Parts that a disk has damaged, or that are not whole, are scored again.
    first, second = sorted((tmp_path / "scores.parquet.parts").glob("0*.parquet"))
    parquet.write_table(parquet.read_table(first).slice(0, 39), first)
    second.write_bytes(b"damaged")
    told = []
    score(predictor, source, out, part_rows=40, batch_size=16, on_progress=lambda *numbers: told.append(numbers[0]))
    assert told[0] == 16
    assert out.read_bytes() == whole

    # What --fresh began is gone on with without it, too, and the old file stays until the new one is whole.
    out.write_text("old")
    stop_after(predictor, source, out, 100, fresh=True)
    assert out.read_text() == "old"
    score(predictor, source, out, part_rows=40, batch_size=16)
    assert out.read_bytes() == whole

    stop_after(predictor, source, out, 100, fresh=True)
    (tmp_path / "scores.parquet.parts" / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="--fresh"):
        score(predictor, source, out, part_rows=40)
    again = []
    settings = {"part_rows": 40, "batch_size": 16, "fresh": True}
    score(predictor, source, out, on_progress=lambda *numbers: again.append(numbers[0]), **settings)
    assert again[0] == 16, "nothing of what was there is used"
    assert out.read_bytes() == whole
