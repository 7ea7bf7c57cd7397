"""A run that is killed without warning, resumed, and compared with one that was never stopped: equal to the bit.

What one learns: every random number is derived from the seed and the step, checkpoints are written whole or not at
all, and so a stopped run loses the steps since its last checkpoint and nothing else.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from jemstone import Session, recipe


def configuration(steps):
    # On the CPU, where the same seed, threads and versions give the same bits.
    every = max(1, steps // 8)
    return recipe("jem-small").with_values(
        steps=steps, network={"name": "conv-8"}, checkpoint_every=every, log_every=1, device="cpu"
    )


def train_and_die(run, steps, last):
    """What the other process does: no exception, no signal handler and no `finally` sees this end."""
    for metrics in Session.start(configuration(steps), run=run).train():
        if metrics["step"] == last:
            os.kill(os.getpid(), signal.SIGKILL)


def main(steps=200):
    with tempfile.TemporaryDirectory() as folder:
        run, last = Path(folder) / "killed", steps // 2 + 1
        child = f"import runpy; runpy.run_path({__file__!r})['train_and_die']({str(run)!r}, {steps}, {last})"
        done = subprocess.run([sys.executable, "-c", child])
        resumed = Session.resume(run)
        began = resumed.state.step
        print(f"killed after step {last} of {steps}; resuming from the checkpoint of step {began}")
        for _ in resumed.train():
            pass
    whole = Session.start(configuration(steps))  # the same settings, never stopped
    for _ in whole.train():
        pass

    weights, expected = resumed.state.model.state_dict(), whole.state.model.state_dict()
    equal = all(torch.equal(weights[name], expected[name]) for name in expected)
    equal = equal and torch.equal(resumed.state.buffer.x, whole.state.buffer.x)
    print(f"weights and chains equal, bit for bit: {equal}")
    return {"status": done.returncode, "began": began, "steps": resumed.state.step, "equal": equal}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
