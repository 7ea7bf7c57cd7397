"""Runs that kill themselves: a script for `test_resume.py`, not a test.

Each plan is a list of places. The first process starts the run and dies at the first place, the next one resumes it and
dies at the second, and so on; the last one goes on to the end. Every process is a fork of this one, made before any
model was run, so that importing torch is paid for once. SIGKILL leaves no time to tidy up or to flush anything.

    python killed.py FOLDER PLANS FAULTS ARGUMENT ...      PLANS is JSON: {name: [[place, number], ...]}

FAULTS, a JSON list, are positions of the labelled stream whose batches hold a NaN: in every process, so that each has
the same failures, and recovers from them.

Writes FOLDER/outcomes.json: {name: [[exit status, files of the run, logged rows], ...]}.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from jemstone import cli, load_dataset, runs
from jemstone.data.batches import Stream
from jemstone.sampling import ReplayBuffer
from jemstone.training.recovery import Recovery


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


def in_recovery(call, arm):
    """Die where `arm()` says, from the moment on at which the state was rolled back for the `call`-th time."""
    calls = [0]
    recover = Recovery.recover

    def recover_and_arm(self, state, problem):
        result = recover(self, state, problem)
        calls[0] += 1
        if calls[0] == call:
            arm(result)
        return result

    Recovery.recover = recover_and_arm


def at_deleting(_):
    """Right after the first of the checkpoints that a recovery leaves behind was deleted."""
    unlink = Path.unlink

    def unlink_and_die(self, missing_ok=False):
        unlink(self, missing_ok=missing_ok)
        return die() if self.name.startswith("step-") else None

    Path.unlink = unlink_and_die


def at_event(*, before):
    """While the recovery is noted: before its row is written or right afterwards."""
    append = runs.Run._append

    def append_and_die(self, name, row):
        if not before:
            append(self, name, row)
        die()

    runs.Run._append = append_and_die


def at_saving(result, **settings):
    """While the treated state is saved."""
    at_renaming(f"step-{result.step:08d}.safetensors", **settings)


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
    "recovery: state rolled back": lambda call: in_recovery(call, lambda _: die()),
    "recovery: checkpoint deleted": lambda call: in_recovery(call, at_deleting),
    "recovery: rows forgotten": lambda call: in_recovery(call, lambda _: at_renaming("metrics.jsonl", before=False)),
    "recovery: before its event": lambda call: in_recovery(call, lambda _: at_event(before=True)),
    "recovery: after its event": lambda call: in_recovery(call, lambda _: at_event(before=False)),
    "recovery: half saved": lambda call: in_recovery(call, lambda r: at_saving(r, before=True, half=True)),
    "recovery: before rename": lambda call: in_recovery(call, lambda r: at_saving(r, before=True)),
    "recovery: after rename": lambda call: in_recovery(call, lambda r: at_saving(r, before=False)),
}


def spoil(positions):
    """Put a NaN into the labelled batches at these positions."""
    call = Stream.__call__

    def spoiled(self, step):
        batch = call(self, step)
        if self.name == "labelled" and step in positions:
            batch.x[0] = float("nan")
        return batch

    Stream.__call__ = spoiled


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


def main(folder, plans, faults, *arguments):
    load_dataset("digits")  # imports scikit-learn and pandas, once for all
    spoil(faults)
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
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]), *sys.argv[4:])
