"""The same energies and gradients, however the network is computed."""

import platform
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn.functional import cosine_similarity

from jemstone.energy import EnergyClassifier, energy_gradient
from jemstone.execution import PLAIN, Execution
from jemstone.networks import build_network
from jemstone.networks.layers import Head
from jemstone.rng import generator, seeded
from jemstone.sampling import langevin, run_chains


def model_and_inputs(network="wrn-10-1", shape=(3, 16, 16), **settings):
    with seeded(0, "model"):
        model = EnergyClassifier(build_network(network, shape, 5, **settings)).eval()
    return model, torch.rand(8, *shape, generator=generator(0, "x")) * 2 - 1


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])])
def test_the_gradient_through_logits_is_that_of_the_energy(labels):
    model, x = model_and_inputs()
    model, x = model.double(), x.double()
    energy, grad = energy_gradient(model, labels)(x)
    x.requires_grad_()
    expected = model.energy(x, labels)
    torch.testing.assert_close(energy, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), x)[0])


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize(
    ("execution", "least"),
    [
        (Execution("32-true", channels_last=True), 0.99999),
        (Execution("bf16-mixed"), 0.98),
        (Execution("bf16-mixed", channels_last=True), 0.98),
    ],
)
def test_precision_and_layout_change_rounding_only(norm, execution, least):
    model, x = model_and_inputs(norm=norm)
    energy, grad = energy_gradient(model, execution=PLAIN)(x)
    other_energy, other_grad = energy_gradient(model, execution=execution)(x)
    assert other_energy.dtype == other_grad.dtype == torch.float32
    assert cosine_similarity(grad.flatten(1), other_grad.flatten(1)).min() > least
    torch.testing.assert_close(other_energy, energy, atol=2e-2, rtol=2e-2)
    assert all(p.grad is None for p in model.parameters())


def test_chains_stay_in_float32_and_in_their_layout():
    model, x = model_and_inputs()
    execution = Execution("bf16-mixed", channels_last=True)
    energy_grad = energy_gradient(model, execution=execution)
    end, info = run_chains(langevin(0.1, 0.01), execution.place(x), energy_grad, 3, generator(0, "noise"))
    assert end.dtype == torch.float32
    assert end.is_contiguous(memory_format=torch.channels_last)
    assert info.energy.dtype == torch.float32


def test_vectors_have_no_layout():
    x = torch.randn(4, 7)
    assert Execution(channels_last=True).place(x) is x


def test_logits_have_the_precision_of_the_weights_under_autocast():
    head, features = Head(16, 3), torch.randn(4, 16) * 100
    with torch.autocast("cpu", torch.bfloat16):
        found = head(features)
        of_half = head(features.bfloat16())
    assert torch.equal(found, torch.nn.functional.linear(features, head.weight, head.bias))
    assert of_half.dtype == torch.float32


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet9-4", "conv-4-2", "mlp-4"])
def test_all_networks_compute_their_logits_in_float32(name):
    model, x = model_and_inputs(name)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.float32


def test_an_energy_that_ignores_its_input_has_gradient_zero():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, x):
            return self.logits.expand(len(x), 2)

    energy, grad = energy_gradient(EnergyClassifier(Constant()))(torch.randn(3, 4))
    torch.testing.assert_close(energy, -torch.tensor([1.0, 2.0]).logsumexp(0).expand(3))
    assert not grad.any()


def test_an_execution_in_words():
    assert str(PLAIN) == "float32"
    everything = Execution("bf16-mixed", channels_last=True, compiled=64, merged=True)
    assert str(everything) == "bfloat16, channels last, compiled chains, one forward pass"


COMPILED = """
import torch
from jemstone.energy import EnergyClassifier, energy_gradient
from jemstone.execution import Execution
from jemstone.networks import build_network

torch.manual_seed(0)
model = EnergyClassifier(build_network("mlp-8-1", (6,), 3)).eval()
x, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
for labels in (None, y):
    eager = energy_gradient(model, labels)
    compiled = energy_gradient(model, labels, execution=Execution(compiled=5))
    for inputs in (x, x[:2]):  # the second batch size is not compiled for
        if labels is not None and len(inputs) < len(labels):
            continue
        for a, b in zip(eager(inputs), compiled(inputs)):
            torch.testing.assert_close(a, b)
with torch.no_grad():
    for weight in model.parameters():
        weight.mul_(2)  # as a training step does: in place
for a, b in zip(energy_gradient(model)(x), energy_gradient(model, execution=Execution(compiled=5))(x)):
    torch.testing.assert_close(a, b)
# BatchNorm in train mode: chains use the statistics of their batch, and move none
from jemstone.networks.modes import running_statistics_held

normed = EnergyClassifier(build_network("conv-2-1", (1, 6, 6), 3, norm="batch")).train()
before = {name: value.clone() for name, value in normed.named_buffers()}
x = torch.randn(5, 1, 6, 6)
compiled = energy_gradient(normed, execution=Execution(compiled=5))(x)
assert all(torch.equal(before[name], value) for name, value in normed.named_buffers())
with running_statistics_held(normed):
    for a, b in zip(energy_gradient(normed)(x), compiled):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

import gc, weakref
alive = weakref.ref(normed)
del normed, a, b, compiled
gc.collect()
assert alive() is None, "a program keeps its model alive"
print("as eager")
"""


def test_a_compiled_gradient_follows_the_weights():
    # In a process of its own: the run-time checks of shapes, which tests install, cannot be compiled.
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMPILED)], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "as eager", done.stderr[-2000:]


FAULTS = """
import resource, sys, torch
from jemstone.execution import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def fresh():  # 24 MB, freed at once
    torch.ones(6_000_000)
fresh(), fresh()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    held = [torch.ones(6_000_000) for _ in range(3)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another one")
def test_freed_memory_is_kept_and_not_mapped_anew():
    def faults(word: str) -> int:  # in a process of its own: it cannot be taken back
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, word], capture_output=True, text=True, timeout=300, check=True
        )
        return int(done.stdout)

    # Several times: where the heap happens to lie below another mapping, it cannot grow, and nothing is kept.
    assert any(faults("keep") < faults("default") / 2 for _ in range(4))
