"""Schedule, sharpness, optimiser and kernel choice: each against its definition."""

import pytest
import torch
from torch import nn

from jemstone.errors import ConfigError
from jemstone.training.config import ChainConfig, OptimizerConfig, TrainConfig
from jemstone.training.setup import join_ranks, learning_rate, make_fabric, make_optimizer, make_sampler
from jemstone.training.sharpness import ascended


def test_warm_up_is_linear_and_ends_at_the_peak():
    config = OptimizerConfig(learning_rate=0.4, warmup_steps=4)
    assert [learning_rate(config, step, 100) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_step_schedule_decays_at_its_milestones():
    config = OptimizerConfig(learning_rate=1.0, schedule="step", milestones=(0.3, 0.6), decay_factor=0.2)
    rates = [learning_rate(config, step, 100) for step in (0, 29, 30, 59, 60, 99)]
    assert rates == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])


def test_cosine_schedule_falls_to_zero():
    config = OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_steps=10)
    assert learning_rate(config, 10, 110) == pytest.approx(1.0)
    assert learning_rate(config, 60, 110) == pytest.approx(0.5)
    assert learning_rate(config, 109, 110) < 1e-3


@pytest.mark.parametrize("adaptive", [False, True])
def test_sharpness_ascends_along_its_formula_and_returns_exactly(adaptive):
    w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    w.grad = torch.tensor([0.3, 0.1, -0.2])
    before = w.detach().clone()
    with ascended([w], rho=0.7, adaptive=adaptive):
        sam, asam = 0.7 * w.grad / w.grad.norm(), 0.7 * before**2 * w.grad / (before * w.grad).norm()
        assert torch.allclose(w, before + (asam if adaptive else sam))
    assert torch.equal(w, before)


def test_sharpness_returns_after_an_error_and_survives_a_zero_gradient():
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="inside"), ascended([w], rho=1.0, adaptive=False):
        raise RuntimeError("inside")
    assert torch.equal(w, torch.ones(2))
    w.grad = torch.zeros(2)
    with ascended([w], rho=1.0, adaptive=False):
        assert torch.equal(w, torch.ones(2))


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_optimiser_by_name(name, kind):
    optimizer = make_optimizer(nn.Linear(2, 2), OptimizerConfig(name, 0.1, momentum=0.8, weight_decay=0.3))
    assert type(optimizer).__name__ == kind
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    assert optimizer.param_groups[0].get("momentum", 0.8) == 0.8


def test_a_network_without_parameters_is_refused():
    with pytest.raises(ConfigError, match="no parameter"):
        make_optimizer(nn.Flatten(), OptimizerConfig())


@pytest.mark.parametrize("kernel", ["langevin", "clipped", "mala"])
def test_the_box_is_used_when_chains_are_clamped(kernel):
    def steep(x):
        return 100 * x.sum(dim=1), torch.full_like(x, 100.0)

    for clamp in (True, False):
        sampler = make_sampler(ChainConfig(kernel, step_size=1.0, noise=1.0, clip=5.0, clamp=clamp), (-1.0, 1.0))
        state = sampler.init(torch.zeros(8, 3), steep)
        state, _ = sampler.step(state, steep, torch.Generator().manual_seed(0))
        assert bool(state.x.abs().max() <= 1) is clamp or kernel == "mala"
        if kernel == "mala":
            assert bool((state.x == 0).all()) is clamp  # outside the box a proposal is rejected


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_missing_gpu_is_explained():
    with pytest.raises(ConfigError, match="no CUDA device"):
        make_fabric(TrainConfig(device="cuda"))


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_several_processes_that_torchrun_did_not_start_are_refused(name, monkeypatch):
    monkeypatch.setenv(name, "2")
    with pytest.raises(ConfigError, match="Started as 2 processes, and not by torchrun"):
        join_ranks(TrainConfig())
    monkeypatch.setenv(name, "1")
    assert join_ranks(TrainConfig(device="cpu")).world_size == 1


def test_one_process_in_an_allocation_for_several_is_one_process(monkeypatch):
    """As in the script of a SLURM job: Fabric left to itself would refuse, or wait for the others."""
    for name, value in {"NTASKS": "4", "JOB_ID": "17", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for fabric in (make_fabric(TrainConfig(device="cpu")), join_ranks(TrainConfig(device="cpu"))):
        assert (fabric.world_size, fabric.global_rank, fabric.device.type) == (1, 0, "cpu")
