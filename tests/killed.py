"""Runs that kill themselves: a script for `test_resume.py`, not a test.

Each plan is a list of places. The first process starts the run and dies at the first place, the next one resumes it and
dies at the second, and so on; the last one goes on to the end. Every process is a fork of this one, made before any
model was run, so that importing torch is paid for once. SIGKILL leaves no time to tidy up or to flush anything.

    python killed.py FOLDER PLANS ARGUMENT ...      PLANS is JSON: {name: [[place, number], ...]}

Writes FOLDER/outcomes.json: {name: [[exit status, files of the run, logged rows], ...]}.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from jemstone import cli, load_dataset, runs
from jemstone.sampling import ReplayBuffer


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_renaming(name, *, before, half=False):
    """While the file `name` is put in its place: before (all of it written, or half of it) or right afterwards."""
    replace = Path.replace

    def replace_or_die(self, target):
        if Path(target).name != name:
            return replace(self, target)
        if half:
            os.truncate(self, self.stat().st_size // 2)
        if not before:
            replace(self, target)
        return die()

    Path.replace = replace_or_die


def at_row(step, *, half=False):
    """Right after a row of metrics.jsonl was written, or in the middle of writing it."""
    append = runs.Run._append

    def append_and_die(self, name, row):
        if name != "metrics.jsonl" or row["step"] != step:
            return append(self, name, row)
        if half:
            text = json.dumps(row)
            with (self.path / name).open("a") as file:
                file.write(text[: len(text) // 2])
        else:
            append(self, name, row)
        return die()

    runs.Run._append = append_and_die


def in_optimiser(call):
    """In the middle of an optimiser's update: some weights have moved and some have not."""
    calls = [0]

    def patched(kind):
        step = kind.step

        def step_or_die(self, closure=None):
            calls[0] += 1
            if calls[0] < call:
                return step(self, closure)
            for p in self.param_groups[0]["params"][::2]:
                p.data.zero_()
            return die()

        kind.step = step_or_die

    for kind in (torch.optim.SGD, torch.optim.Adam):  # AdamW is an Adam
        patched(kind)


def at_storing(call):
    """After the weights have moved and before the chains have."""
    calls = [0]
    store = ReplayBuffer.store

    def store_or_die(self, *arguments, **settings):
        calls[0] += 1
        return die() if calls[0] == call else store(self, *arguments, **settings)

    ReplayBuffer.store = store_or_die


PLACES = {
    "writing config": lambda _: at_renaming("config.json", before=True, half=True),
    "writing initial": lambda _: at_renaming("initial.safetensors", before=True),
    "before rename": lambda step: at_renaming(f"step-{step:08d}.safetensors", before=True),
    "half written": lambda step: at_renaming(f"step-{step:08d}.safetensors", before=True, half=True),
    "after rename": lambda step: at_renaming(f"step-{step:08d}.safetensors", before=False),
    "row": lambda step: at_row(step),
    "half a row": lambda step: at_row(step, half=True),
    "optimiser": in_optimiser,
    "buffer": at_storing,
}


def forked(arguments, place):
    """The exit status of the command in a process of its own that dies at `place`, if it gets there."""
    child = os.fork()
    if child == 0:
        try:
            if place is not None:
                PLACES[place[0]](place[1])
            os._exit(cli.main(arguments))
        finally:
            os._exit(99)  # an exception, already printed or not: never go on as a second parent
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder, plans, *arguments):
    load_dataset("digits")  # imports scikit-learn and pandas, once for all
    outcomes = {}
    for name, places in plans.items():
        run = folder / name
        outcomes[name] = []
        for place in (*places, None):
            resumable = (run / "config.json").exists()
            command = ["train", "--resume", str(run)] if resumable else ["train", *arguments, "--run", str(run)]
            status = forked(command, place)
            files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
            rows = run / "metrics.jsonl"
            outcomes[name].append([status, files, rows.read_text().splitlines() if rows.exists() else []])
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), *sys.argv[3:])
