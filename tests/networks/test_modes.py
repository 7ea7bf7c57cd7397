"""What is not weights: modes and running averages, each given back as it was."""

import pytest
import torch
from torch import nn

from jemstone.networks import build_network
from jemstone.networks.modes import (
    ChannelStatistics,
    buffers_restored_on_error,
    in_mode,
    running_statistics_held,
    statistics_distance,
    statistics_of_negatives,
    statistics_recorded,
    train_mode,
)


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


def separate_network() -> nn.Module:
    torch.manual_seed(0)
    return build_network("conv-4-2", (1, 8, 8), 3, norm="batch", statistics="separate")


def images(seed: int, n: int = 6, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """The kinds of buffers that are not what they were; a kind counts if it moved in every layer."""
    names = {name.rsplit(".", 1)[1] for name in before}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    kinds = {kind for kind in names if any(name.endswith(f".{kind}") for name in changed)}
    for kind in kinds:
        assert {name for name in before if name.endswith(f".{kind}")} <= changed
    return kinds


OWN = {"running_mean", "running_var", "num_batches_tracked"}
OTHER = {"negatives_mean", "negatives_var", "negatives_batches_tracked"}


def test_each_set_of_statistics_moves_with_its_own_inputs_alone():
    model = separate_network()
    before = state_of(model)
    model(images(0))
    assert moved(model, before) == OWN
    before = state_of(model)
    with statistics_of_negatives(model):
        model(images(1))
    assert moved(model, before) == OTHER
    before = state_of(model)
    with pytest.raises(RuntimeError, match="inside"), statistics_of_negatives(model):
        raise RuntimeError("inside")
    model(images(2))
    assert moved(model, before) == OWN


def test_statistics_of_negatives_may_be_nested():
    model = separate_network()
    with statistics_of_negatives(model):
        before = state_of(model)
        with statistics_of_negatives(model):
            model(images(0))
        assert moved(model, before) == OTHER
        model(images(0))
        assert moved(model, before) == OTHER


def test_in_train_mode_the_batch_normalises_whichever_set_is_moved():
    model = separate_network()
    expected = model(images(0))
    with statistics_of_negatives(model):
        assert torch.equal(model(images(0)), expected)


def test_without_separate_statistics_nothing_changes():
    model, twin = network().train(), network().train()
    with statistics_of_negatives(model):
        model(torch.ones(4, 3))
    twin(torch.ones(4, 3))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("order", ["held outside", "held inside"])
def test_both_sets_are_held(order):
    model = separate_network()
    model(images(0))
    with statistics_of_negatives(model):
        model(images(1))
    before = state_of(model)
    if order == "held outside":
        with running_statistics_held(model):
            model(images(2))
            with statistics_of_negatives(model):
                model(images(3))
    else:
        with statistics_of_negatives(model), running_statistics_held(model):
            model(images(3))
        with running_statistics_held(model):
            model(images(2))
    assert moved(model, before) == set()
    with pytest.raises(RuntimeError, match="channels"), statistics_of_negatives(model), running_statistics_held(model):
        model.stages[1](model.stages[0](images(4))[:, :3])  # the first layer has moved, if it could
    assert moved(model, before) == set()
    with statistics_of_negatives(model):
        model(images(5))
    assert moved(model, before) == OTHER


def test_frozen_norms_use_their_averages_and_leave_them():
    model = build_network("conv-4-2", (1, 8, 8), 3, norm="batch", dropout=0.5)
    model(images(0, scale=3.0))
    model.eval()
    before = state_of(model)
    train_mode(model, frozen_norms=True)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2
    assert all(module.training is not (module in norms) for module in model.modules())
    features = images(1, n=4).expand(-1, 4, -1, -1)
    expected = nn.functional.batch_norm(features, norms[0].running_mean, norms[0].running_var, eps=norms[0].eps)
    torch.testing.assert_close(norms[0](features), expected)
    model(images(2))
    assert moved(model, before) == set()
    train_mode(model, frozen_norms=False)
    assert all(module.training for module in model.modules())
    model(images(2))
    assert moved(model, before) == OWN


def test_statistics_are_those_of_what_enters_each_layer():
    model = network().train()
    x, y = torch.randn(8, 3), torch.randn(5, 3)
    with statistics_recorded(model) as recorded:
        model(x)
        model(y)
    assert list(recorded) == ["0.1", "1.1"]
    for batch, first, second in zip((x, y), *recorded.values(), strict=True):
        entering = model[0][0](batch)
        features = {"0.1": (first, entering), "1.1": (second, model[1][0](model[0][1](entering)))}
        for statistics, feature in features.values():
            torch.testing.assert_close(statistics.mean, feature.mean(dim=0).detach())
            torch.testing.assert_close(statistics.variance, feature.var(dim=0, correction=0).detach())
            assert statistics.size == len(batch)
            assert not statistics.mean.requires_grad


def test_statistics_of_feature_maps_are_over_inputs_and_positions():
    model = build_network("conv-4-1", (1, 8, 8), 3, norm="batch").eval()
    with statistics_recorded(model) as recorded:
        model(images(0))
    features = model.stages[0][0](images(0)).detach()
    ((name, (statistics,)),) = recorded.items()
    assert name == "stages.0.1"
    torch.testing.assert_close(statistics.mean, features.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(statistics.variance, features.var(dim=(0, 2, 3), correction=0))
    assert statistics.size == 6 * 8 * 8


def test_recording_changes_nothing_and_ends_with_its_context():
    model, twin = separate_network(), separate_network()
    with statistics_recorded(model) as recorded:
        out = model(images(0))
    assert torch.equal(out, twin(images(0)))
    assert moved(model, state_of(twin)) == set()
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="inside"), statistics_recorded(model) as cut_short:
        raise RuntimeError("inside")
    model(images(1))
    assert {len(entries) for entries in recorded.values()} == {1}
    assert cut_short == {}


def of(*values: tuple[float, float], size: int = 10) -> ChannelStatistics:
    return ChannelStatistics(*torch.tensor(values).unbind(dim=1), size)


def test_the_distance_by_hand():
    a = {"first": [of((0.0, 1.0), (3.0, 4.0))], "second": [of((5.0, 2.0))]}
    b = {"second": [of((3.0, 6.0))], "first": [of((2.0, 1.0), (0.0, 5.0))]}
    distance = statistics_distance(a, b, eps=0.0)
    assert distance.shape == ()
    assert distance.item() == pytest.approx((4 / 2 + 9 / 9 + 4 / 8) / 3)
    assert statistics_distance(b, a, eps=0.0) == distance
    assert statistics_distance(a, b, eps=1.0).item() == pytest.approx((4 / 3 + 9 / 10 + 4 / 9) / 3)
    assert statistics_distance(a, a).item() == 0
    dead = {"first": [of((1.0, 0.0))]}
    assert statistics_distance(dead, dead).item() == 0


def test_several_passes_are_one_batch():
    model = build_network("conv-4-1", (1, 8, 8), 3, norm="batch").train()
    x, other = images(0, n=7), images(1, scale=2.0)
    with statistics_recorded(model) as whole:
        model(x)
    with statistics_recorded(model) as parts:
        model(x[:5])
        model(x[5:])
    with statistics_recorded(model) as negatives:
        model(other)
    assert statistics_distance(whole, parts).item() == pytest.approx(0, abs=1e-10)
    torch.testing.assert_close(statistics_distance(parts, negatives), statistics_distance(whole, negatives))
    # Between the passes there is variance too, which a mean of variances would miss.
    shifted = {"layer": [of((-1.0, 1.0), size=10), of((2.0, 4.0), size=20)]}
    merged = {"layer": [of((1.0, (1 + 2 * 4) / 3 + (4 + 2 * 1) / 3), size=30)]}
    reference = {"layer": [of((4.0, 0.0))]}
    assert statistics_distance(shifted, reference).item() == pytest.approx(
        statistics_distance(merged, reference).item()
    )


def test_a_shift_of_the_inputs_is_seen():
    model = separate_network()
    with torch.no_grad(), statistics_recorded(model) as real:
        model(images(0, n=64))
    distances = []
    for shift in (0.0, 0.5, 1.0):
        with statistics_recorded(model) as negatives:
            model(images(1, n=64) + shift)
        distances.append(statistics_distance(real, negatives))
    assert not any(distance.requires_grad for distance in distances)
    assert distances[0] < 0.01 < distances[1] < distances[2]


def test_without_batch_norm_the_distance_is_zero():
    model = build_network("conv-4-2", (1, 8, 8), 3, norm="group")
    with statistics_recorded(model) as real:
        model(images(0))
    with statistics_recorded(model) as negatives:
        model(images(1))
    distance = statistics_distance(real, negatives)
    assert distance.shape == ()
    assert distance == 0


def test_layers_that_only_one_side_passed_through_are_left_out():
    """As with stochastic depth."""
    first, far = {"first": [of((0.0, 1.0))]}, {"second": [of((50.0, 1.0))]}
    other = {"first": [of((1.0, 1.0))], "third": [of((-50.0, 1.0))]}
    assert statistics_distance(first | far, other, eps=0.0).item() == pytest.approx(1 / 2)
    assert statistics_distance(other, far | first, eps=0.0).item() == pytest.approx(1 / 2)
    assert statistics_distance(first, far) == 0
