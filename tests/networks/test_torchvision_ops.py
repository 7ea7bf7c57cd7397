import subprocess
import sys

import pytest

PROGRAM = """
from jemstone.networks.torchvision_ops import make_importable
make_importable()
make_importable()
import torchvision
import torch
print(torch.nn.functional.relu(torch.ones(1)).item(), torchvision.transforms.Resize(2).size)
"""


def test_torchvision_can_be_imported_beside_a_torch_that_it_was_not_built_for():
    pytest.importorskip("torchvision")  # conftest has made it importable here; a new process has not
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == "1.0 2\n", done.stderr


def test_without_torchvision_nothing_happens(monkeypatch):
    from jemstone.networks import torchvision_ops

    monkeypatch.setattr(torchvision_ops.importlib.util, "find_spec", lambda name: None)
    kept = len(torchvision_ops._kept)
    torchvision_ops.make_importable()
    assert len(torchvision_ops._kept) == kept
