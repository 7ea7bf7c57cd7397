"""One thread everywhere, here and in child processes: bits depend on it, and two workers share two cores.

Shapes are types, and the tests execute them: every annotated function of jemstone is checked as it runs.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
install_import_hook("jemstone", "typecheck.checked")

from jemstone.networks.torchvision_ops import make_importable  # noqa: E402  (after the hook)

make_importable()  # before any test imports torchmetrics, which imports torchvision
