"""What is not weights: modes and running averages, each given back as it was."""

import pytest
import torch
from torch import nn

from jemstone.networks.modes import buffers_restored_on_error, in_mode, running_statistics_held


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    )


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_kept_module_by_module(training):
    """A network with some of its layers frozen comes back with these layers frozen, and no others."""
    model = network().train()
    model[0].eval()
    model[1][1].eval()
    before = modes(model)
    assert len(set(before)) == 2
    with in_mode(model, training=training):
        assert set(modes(model)) == {training}
    assert modes(model) == before
    with pytest.raises(RuntimeError, match="inside"), in_mode(model, training=training):
        raise RuntimeError("inside")
    assert modes(model) == before


def test_running_averages_are_held_while_batch_statistics_are_used():
    model = network().train()
    model[1][1].momentum = None  # a cumulative average
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(8, 3) * 3 + 1
    expected = network().train()(x)
    with running_statistics_held(model):
        held = model(x)
    assert torch.equal(held, expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [model[0][1].momentum, model[1][1].momentum] == [0.1, None]
    model(x)
    assert not torch.equal(model[0][1].running_mean, before["0.1.running_mean"])


def test_buffers_go_back_after_an_error_alone():
    model = network().train()
    before = [buffer.clone() for buffer in model.buffers()]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), buffers_restored_on_error(model):
        model[1](model(torch.randn(8, 3))[:, :2])  # the first pass has moved them all
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
    with buffers_restored_on_error(model):
        model(torch.randn(8, 3))
    assert not all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
