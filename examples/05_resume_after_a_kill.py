"""A run that is killed without warning, resumed, and compared with one that was never stopped: equal to the bit.

What one learns: every random number is derived from the seed and the step, checkpoints are written whole or not at
all, and so a stopped run loses the steps since its last checkpoint and nothing else.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from jemstone import Session, TrainConfig
from jemstone.runs import Run


def main(steps=200):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "killed"
        command = [sys.executable, "-m", "jemstone", "train", "jem-small", "--run", str(run), "--steps", str(steps)]
        small = ["--network", "conv-8", "--checkpoint_every", str(max(1, steps // 8)), "--log_every", "1"]
        process = subprocess.Popen([*command, *small], stdout=subprocess.DEVNULL)
        rows = run / "metrics.jsonl"
        while process.poll() is None and (not rows.exists() or len(rows.read_text().splitlines()) < steps // 2):
            time.sleep(0.005)
        process.kill()  # SIGKILL: nothing can be tidied up
        process.wait()

        resumed = Session.resume(run)
        began = resumed.state.step
        print(f"killed after about step {steps // 2} of {steps}; resuming from the checkpoint of step {began}")
        for _ in resumed.train():
            pass

        whole = Session.start(TrainConfig.from_dict(Run(run).info["config"]))  # the same settings, never stopped
        for _ in whole.train():
            pass

    weights, expected = resumed.state.model.state_dict(), whole.state.model.state_dict()
    equal = all(torch.equal(weights[name], expected[name]) for name in expected)
    equal = equal and torch.equal(resumed.state.buffer.x, whole.state.buffer.x)
    print(f"weights and chains equal, bit for bit: {equal}")
    return {"began": began, "steps": resumed.state.step, "equal": equal}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
