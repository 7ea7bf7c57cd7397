"""Muon against singular value decompositions, torch's own, and the run that was never stopped."""

import pytest
import torch
from torch import nn

from jemstone.data import load_dataset
from jemstone.errors import ConfigError
from jemstone.networks import build_network
from jemstone.training.config import OptimizerConfig
from jemstone.training.muon import Muon, hidden_weights, orthogonalised
from jemstone.training.recipes import recipe
from jemstone.training.session import Session
from jemstone.training.setup import make_optimizer

SHAPES = [(6, 40), (40, 6), (16, 16), (1, 9), (64, 144)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameter(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(normal(*shape, seed=seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalised_is_the_quintic_of_the_singular_values(shape):
    matrix = normal(*shape)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalised(matrix).double(), u @ s.diag() @ vh, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalised_is_close_to_the_polar_factor(shape):
    matrix = normal(*shape)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonalised(matrix) @ vh.T  # U^T (U S' V^T) V
    values = found.diagonal()
    assert (found - values.diag()).abs().max() < 1e-4, "the singular vectors are kept"
    assert values.min() > 0.68
    assert values.max() < 1.21


def test_the_band_holds_for_all_values_that_the_docstring_names():
    values = torch.logspace(-2.5, 0, 200)
    found = orthogonalised(torch.diag(values / values.norm())).diagonal()
    counted = values / values.norm() > 0.003
    assert counted.sum() > 100
    assert found[counted].min() > 0.68
    assert found[counted].max() < 1.21
    assert found[~counted].max() < 1.21


def test_orthogonalised_forgets_the_length_and_survives_zero():
    matrix = normal(5, 7)
    torch.testing.assert_close(orthogonalised(1e-12 * matrix), orthogonalised(matrix), rtol=1e-4, atol=1e-5)
    assert (orthogonalised(torch.zeros(5, 7)) == 0).all()


def test_a_step_is_written_out():
    """Two steps on a convolution, with polar factors from the SVD of its (out, in * kernel) matrix."""
    w = parameter(4, 3, 3, 3)
    expected, average = w.detach().clone(), torch.zeros(4, 27)
    optimizer = Muon([w], [], 0.1, momentum=0.8, weight_decay=0.3)
    for step in range(2):
        w.grad = normal(4, 3, 3, 3, seed=10 + step)
        average = 0.8 * average + 0.2 * w.grad.view(4, 27)
        update = orthogonalised(0.8 * average + 0.2 * w.grad.view(4, 27))
        expected = expected * (1 - 0.1 * 0.3) - 0.1 * 0.2 * 27**0.5 * update.view(4, 3, 3, 3)
        optimizer.step()
    torch.testing.assert_close(w.detach(), expected)


@pytest.mark.parametrize("shape", [(32, 288), (288, 32), (64, 64)])
def test_an_update_has_the_size_of_adamws(shape):
    w = parameter(*shape)
    before, w.grad = w.detach().clone(), normal(*shape, seed=1)
    Muon([w], [], 0.01, momentum=0.9, weight_decay=0.0).step()
    assert 0.15 * 0.01 < (w.detach() - before).square().mean().sqrt() < 0.25 * 0.01


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
def test_matrices_move_as_under_torchs_muon(shape):
    ours, theirs = parameter(*shape), parameter(*shape)
    start = ours.detach().clone()
    reference = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw", ns_steps=5
    )
    optimizer = Muon([ours], [], 0.02, momentum=0.9, weight_decay=0.1)
    for step in range(6):
        ours.grad, theirs.grad = (normal(*shape, seed=step + 1) for _ in range(2))
        optimizer.step()
        reference.step()
    moved, other = ours.detach() - start, theirs.detach() - start
    assert (moved - other).norm() < 0.02 * other.norm()  # theirs iterates in bfloat16, of 8 bits


def test_all_else_moves_as_under_torchs_adamw():
    ours, theirs = parameter(3, 5), parameter(3, 5)
    reference = torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.1)
    optimizer = Muon([], [ours], 0.02, momentum=0.5, weight_decay=0.1)
    for step in range(6):
        ours.grad, theirs.grad = (normal(3, 5, seed=step + 1) for _ in range(2))
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "shape", "hidden"),
    [
        ("conv-4", (1, 8, 8), ["stages.1.0.weight", "stages.2.0.weight"]),
        ("mlp-8-3", (5,), ["hidden.1.0.weight", "hidden.2.0.weight"]),
        (
            "wrn-10-1",
            (3, 8, 8),
            [
                *("stages.0.0.conv1.weight", "stages.0.0.conv2.weight"),
                *(f"stages.{s}.0.{layer}.weight" for s in (1, 2) for layer in ("conv1", "conv2", "shortcut")),
            ],
        ),
        (
            "resnet9-4",
            (3, 16, 16),
            [
                *("down1.0.weight", "residual1.0.0.weight", "residual1.1.0.weight"),
                *("down2.0.weight", "down3.0.weight", "residual3.0.0.weight", "residual3.1.0.weight"),
            ],
        ),
    ],
)
def test_inner_weights_are_muons_and_the_rest_adamws(name, shape, hidden):
    norm = "none" if name.startswith("mlp") else "group"
    network = build_network(name, shape, 10, norm=norm)
    optimizer = make_optimizer(network, OptimizerConfig("muon", 0.01))
    names = {parameter: name for name, parameter in network.named_parameters()}
    muon, adamw = ([names[p] for p in group["params"]] for group in optimizer.param_groups)
    assert [group["rule"] for group in optimizer.param_groups] == ["muon", "adamw"]
    assert sorted(muon) == sorted(hidden)
    assert sorted(muon + adamw) == sorted(names.values())


def test_hidden_weights_of_unusual_networks():
    inner, twin = nn.Linear(4, 4), nn.Linear(4, 4)
    twin.weight = inner.weight
    tied = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), inner, twin, nn.Linear(4, 4), nn.Linear(4, 2))
    assert [id(w) for w in hidden_weights(tied)] == [id(tied[2].weight), id(tied[4].weight)]
    tied[0].requires_grad_(False)
    tied[1].requires_grad_(False)  # it stays the first layer
    tied[4].requires_grad_(False)
    assert [id(w) for w in hidden_weights(tied)] == [id(inner.weight)]
    spectral = build_network("conv-4", (1, 8, 8), 2, spectral_norm=True)
    originals = {id(p) for name, p in spectral.named_parameters() if name.endswith("weight.original")}
    assert {id(w) for w in hidden_weights(spectral)} < originals
    assert len(hidden_weights(spectral)) == 2


def test_a_network_without_hidden_weights_is_refused():
    with pytest.raises(ConfigError, match=r"between the first and the last layer.*Use adamw"):
        make_optimizer(build_network("mlp-8-1", (5,), 2), OptimizerConfig("muon"))
    with pytest.raises(ConfigError, match=r"optimizer.momentum must be below 1 with muon, got 1\.0"):
        OptimizerConfig("muon", momentum=1.0)


def tiny(**changes):
    config = recipe("jemstone-small").with_values(
        steps=10,
        network={"name": "conv-8"},
        chains={"steps": 2, "buffer_size": 40},
        optimizer={"name": "muon", "weight_decay": 0.1},
        **{"batch_size": 16, "real_batch_size": 16, "checkpoint_every": 4, "validate_every": 0, "device": "cpu"},
    )
    return config.with_values(**changes)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", seed=0)


def test_stopped_and_resumed_is_bitwise_the_run_never_stopped(digits, tmp_path):
    whole = Session.start(tiny(), digits)
    expected = list(whole.train())
    stopped = Session.start(tiny(), digits, run=tmp_path / "run")
    for metrics in stopped.train():
        if metrics["step"] == 6:
            break
    resumed = Session.resume(tmp_path / "run", digits)
    assert resumed.state.step == 4
    found = list(resumed.train())
    for one, other in zip(found, expected[4:], strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}
    (tensors, header), (other, other_header) = resumed.state.checkpoint(), whole.state.checkpoint()
    assert header == other_header
    assert tensors.keys() == other.keys()
    assert {"optimizer/0/momentum_buffer", "optimizer/2/exp_avg"} <= tensors.keys()
    assert all(torch.equal(tensors[name], other[name]) for name in tensors)


def test_a_few_steps_on_digits_lower_the_loss(digits):
    session = Session.start(tiny(steps=80, optimizer={"warmup_steps": 5, "learning_rate": 0.01}), digits)
    losses = [row["class_nll"] for row in session.train()]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
