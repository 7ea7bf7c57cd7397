"""Scorings that kill themselves: a script for `test_bulk_resume.py`, not a test.

    python killed_scoring.py RUN SOURCE FOLDER PLANS       PLANS is JSON: {name: [[place, number], ...]}

As in `killed.py`, each plan is a list of places: the first process dies at the first, the next one goes on and dies at
the second, and the last one goes on to the end, with another number of threads. Every process is a fork of this one.

Writes FOLDER/NAME/scores.parquet, and FOLDER/outcomes.json: {name: [[exit status, files, rows found done], ...]}.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pyarrow.parquet  # noqa: F401  (once for all)

from jemstone.deployment import bulk, bulk_parts
from jemstone.deployment.predictor import Predictor
from killed import at_renaming, die


def in_part(number):
    """In the middle of a part: some of its blocks have been scored."""
    blocks = bulk.score_spans

    def score_and_die(*arguments):
        for scored in blocks(*arguments):
            if scored.part == number:
                die()
            yield scored

    bulk.score_spans = score_and_die


def at_removing(_):
    """When the output is there, and some of the parts, the manifest first, are gone."""

    def remove_some_and_die(folder):
        (folder / "manifest.json").unlink()
        (folder / "00000000.parquet").unlink()
        die()

    bulk_parts.shutil = type("Shutil", (), {"rmtree": staticmethod(remove_some_and_die)})


PLACES = {
    "in a part": in_part,
    "manifest half written": lambda _: at_renaming("manifest.json", before=True, half=True),
    "part half written": lambda number: at_renaming(f"{number:08d}.parquet", before=True, half=True),
    "before a part is renamed": lambda number: at_renaming(f"{number:08d}.parquet", before=True),
    "after a part is renamed": lambda number: at_renaming(f"{number:08d}.parquet", before=False),
    "whole half written": lambda _: at_renaming("scores.parquet", before=True, half=True),
    "after the whole is renamed": lambda _: at_renaming("scores.parquet", before=False),
    "while parts are removed": at_removing,
}


def forked(run, source, out, place):
    """Exit status of a process that scores and dies at `place`, if it gets there; and where it began."""
    began = out.parent / "began"
    began.unlink(missing_ok=True)

    def tell(done, rows):
        if not began.exists():
            began.write_text(str(done))

    child = os.fork()
    if child == 0:
        try:
            if place is not None:
                PLACES[place[0]](place[1])
            predictor = Predictor.load(run, device="cpu")
            threads = 2 if place is None else 1
            bulk.score(predictor, source, out, part_rows=40, batch_size=16, workers=threads, on_progress=tell)
            os._exit(0)
        finally:
            os._exit(99)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, int(began.read_text()) if began.exists() else None


def main(run, source, folder, plans):
    Predictor.load(run, device="cpu")  # imports the rest; the model is not run before a fork
    outcomes = {}
    for name, places in plans.items():
        out = folder / name / "scores.parquet"
        out.parent.mkdir()
        outcomes[name] = []
        for place in (*places, None):
            status, began = forked(run, source, out, place)
            (out.parent / "began").unlink(missing_ok=True)
            files = sorted(str(p.relative_to(out.parent)) for p in out.parent.rglob("*") if p.is_file())
            outcomes[name].append([status, files, began])
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
