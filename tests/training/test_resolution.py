"""Progressive resolution: against averages and interpolations by hand, and across stops, failures and the switch."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from jemstone.data import Augment, Dataset, Split, Stream, load_dataset, to_box
from jemstone.data.batches import pooled
from jemstone.doctor.trends import judge_rows
from jemstone.errors import ConfigError, Diverged
from jemstone.execution import Execution
from jemstone.sampling import ClassGaussian
from jemstone.training import loop, recovery
from jemstone.training.checkpoint import list_checkpoints, load_checkpoint, step_of
from jemstone.training.config import ProgressiveConfig
from jemstone.training.initial_file import load_initial
from jemstone.training.recipes import recipe
from jemstone.training.resolution import enlarged
from jemstone.training.session import Session
from jemstone.training.settings import Limits
from jemstone.training.setup import Trainer, make_fabric, make_initial
from jemstone.training.trained import load_trained

STEPS, SWITCH = 10, 5
TINY = {
    "steps": STEPS,
    "network": {"name": "wrn-10-1", "norm": "group"},
    "batch_size": 6,
    "real_batch_size": 6,
    "log_every": 1,
    "validate_every": 4,
    "checkpoint_every": 1,
    "keep_checkpoints": 99,
    "device": "cpu",
    "precision": "32-true",
    "layout": "contiguous",
    "augment": {"crop_padding": 1, "flip": True, "noise": 0.1},
    "recovery": {"snapshot_every": 99},
}


def tiny(**changes):
    config = recipe("jem-small").with_values(**TINY, chains={"steps": 2, "buffer_size": 20, "start": "gaussian"})
    return config.with_values(progressive={"share": SWITCH / STEPS}).with_values(**changes)


@pytest.fixture(scope="module")
def digits():
    data = load_dataset("digits", seed=0)
    return replace(data, validation=data.validation.spread(50))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits):
    session = Session.start(tiny(), digits, run=tmp_path_factory.mktemp("resolution") / "run")
    list(session.train())
    return session


def averaged(images, factor=2):
    """Averages over squares of pixels, by hand."""
    n, c, h, w = images.shape
    out = np.zeros((n, c, h // factor, w // factor))
    for i in range(h // factor):
        for j in range(w // factor):
            square = images.double().numpy()[:, :, factor * i : factor * (i + 1), factor * j : factor * (j + 1)]
            out[:, :, i, j] = square.reshape(n, c, -1).mean(axis=2)
    return torch.from_numpy(out).float()


def interpolated(images, factor=2):
    """Bilinear interpolation between the centres of pixels, by hand; beyond the outermost centres it is constant."""
    images = images.double().numpy()
    for axis in (2, 3):
        size = images.shape[axis]
        place = ((np.arange(size * factor) + 0.5) / factor - 0.5).clip(0, size - 1)
        low = np.floor(place).astype(int).clip(max=size - 2)
        weight = (place - low).reshape(-1, *[1] * (3 - axis))
        images = (1 - weight) * images.take(low, axis) + weight * images.take(low + 1, axis)
    return torch.from_numpy(images).float()


def test_a_reduced_batch_is_the_average_of_the_cropped_and_flipped_one():
    split = Split(torch.randint(0, 256, (20, 3, 8, 12), dtype=torch.uint8), torch.arange(20))
    for factor in (2, 4):
        stream = Stream(split, 6, Augment(crop_padding=2, flip=True), seed=0, name="t")
        for step in range(5):
            full, low = stream(step), stream.reduced(factor)(step)
            assert low.x.shape == (6, 3, 8 // factor, 12 // factor)
            assert torch.allclose(low.x, averaged(full.x, factor), atol=1e-6)
            assert torch.equal(low.y, full.y)


def test_noise_keeps_its_deviation_at_low_resolution():
    stream = Stream(Split(torch.zeros(50, 1, 32, 32), torch.arange(50)), 50, Augment(noise=0.2), seed=0, name="t")
    x = stream.reduced(2)(0).x
    assert x.shape == (50, 1, 16, 16)
    deviation = 0.2 / math.sqrt(2 * x.numel())
    assert abs(float(x.std()) - 0.2) < 4 * deviation


def test_chains_are_enlarged_by_bilinear_interpolation():
    x = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for factor in (2, 3):
        assert torch.allclose(enlarged(x, factor), interpolated(x, factor), atol=1e-6)
        assert enlarged(x, factor).abs().max() <= x.abs().max()


def test_starts_are_those_of_averaged_data(digits):
    few, device = replace(digits, train=digits.train.spread(120)), torch.device("cpu")
    small = averaged(to_box(few.train.inputs))
    rng, labels = torch.Generator(), torch.arange(20) % 10

    def start(name):
        return make_initial(few, tiny(chains={"start": name}), device, 2)(labels, rng.manual_seed(0))

    fitted = ClassGaussian.fit(small, few.train.labels, 10, box=digits.box)
    assert torch.allclose(start("gaussian"), fitted(labels, rng.manual_seed(0)), atol=1e-3)
    assert start("uniform").shape == (20, 1, 4, 4)
    for x, label in zip(start("data"), labels, strict=True):
        assert (small[few.train.labels == label] - x).abs().flatten(1).amax(dim=1).min() < 1e-6


def test_the_first_steps_are_at_low_resolution_and_all_others_at_the_full_one(whole):
    rows = whole.run.rows("metrics.jsonl")
    assert [row["resolution"] for row in rows] == [4] * SWITCH + [8] * (STEPS - SWITCH)
    sizes = {}
    for path in list_checkpoints(whole.run.path / "checkpoints"):
        sizes[step_of(path)] = load_checkpoint(path).tensors["buffer/x"].shape[1:]
    assert sizes == {step: (1, 4, 4) if step < SWITCH else (1, 8, 8) for step in range(STEPS + 1)}
    assert not whole.state.treatment.failures


@pytest.mark.parametrize(("share", "low"), [(0.0, 0), (0.09, 0), (0.1, 1), (0.99, 9)])
def test_a_share_is_rounded_down(digits, share, low):
    trainer = Trainer.create(digits, tiny(progressive={"share": share}), make_fabric(tiny()))
    assert trainer.low_steps == low
    assert [trainer.resolved(step).factor for step in range(STEPS)] == [2] * low + [1] * (STEPS - low)


def test_at_the_switch_chains_are_enlarged_and_nothing_else_moves(whole, digits):
    later = Session.start(tiny(progressive={"share": (SWITCH + 1) / STEPS}), digits)  # the same until then
    for row in later.train():
        if row["step"] == SWITCH:
            break
    path = whole.run.path / "checkpoints" / f"step-{SWITCH:08d}.safetensors"
    switched, low = load_checkpoint(path), later.state.checkpoint()
    assert torch.allclose(switched.tensors["buffer/x"], interpolated(low.tensors["buffer/x"]), atol=1e-6)
    for name in low.tensors.keys() - {"buffer/x"}:
        assert torch.equal(switched.tensors[name], low.tensors[name]), name
    assert switched.tensors["buffer/age"].max() > 0
    assert low.header["history"]
    assert switched.header["history"] == []


def same_end(one, other):
    (tensors, header), (others, other_header) = one.state.checkpoint(), other.state.checkpoint()
    assert json.dumps(header) == json.dumps(other_header)  # NaN is not equal to itself
    assert tensors.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in tensors.items())


def stopped_at(step, run, copy):
    """A copy of `run` as it was left by a process that died after the checkpoint of `step`."""
    shutil.copytree(run, copy)
    for path in list_checkpoints(copy / "checkpoints"):
        if step_of(path) > step:
            path.unlink()
    return copy


def without_time(session):
    rows = session.run.rows("metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("step", [0, SWITCH - 1, SWITCH, SWITCH + 1])
def test_a_resumed_run_is_bitwise_the_run_never_stopped(whole, digits, tmp_path, step):
    resumed = Session.resume(stopped_at(step, whole.run.path, tmp_path / "run"), digits)
    assert resumed.state.step == step
    list(resumed.train())
    same_end(resumed, whole)
    assert without_time(resumed) == without_time(whole)


@pytest.fixture
def fails_after_the_switch(monkeypatch):
    """NaN in the labelled batch of the second step at full resolution, in its first attempt."""
    call = Stream.__call__

    def spoiled(self, step):
        batch = call(self, step)
        if self.name == "labelled" and step == SWITCH + 1:
            batch.x[2] = math.nan
        return batch

    monkeypatch.setattr(Stream, "__call__", spoiled)


def test_a_rollback_across_the_switch_goes_back_to_small_chains_and_switches_again(
    fails_after_the_switch, digits, tmp_path
):
    config = tiny(checkpoint_every=SWITCH - 1)  # and no snapshot since
    session = Session.start(config, digits, run=tmp_path / "run")
    seen = [(row["step"], row["resolution"], tuple(session.state.buffer.x.shape[2:])) for row in session.train()]
    steps = [*range(1, SWITCH + 2), *range(SWITCH, STEPS + 1)]
    assert [step for step, _, _ in seen] == steps
    assert all(side == (4 if step <= SWITCH else 8) for step, side, _ in seen)
    assert all(shape == ((4, 4) if step < SWITCH else (8, 8)) for step, _, shape in seen)
    (event,) = [row for row in session.run.rows("events.jsonl") if row["event"] == "recovered"]
    assert (event["step"], event["failed_step"]) == (SWITCH - 1, SWITCH + 2)
    treated = load_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{SWITCH - 1:08d}.safetensors")
    assert treated.header["treatment"]["failures"] == [SWITCH + 2]
    assert treated.tensors["buffer/x"].shape[2:] == (4, 4)
    resumed = Session.resume(stopped_at(SWITCH - 1, tmp_path / "run", tmp_path / "copy"), digits)
    list(resumed.train())
    same_end(resumed, session)


def test_poisoned_chains_of_the_low_phase_start_anew_as_small_images(digits, monkeypatch):
    seen, judge = [], recovery.poisoned_chains

    def recorded(model, buffer, real):
        seen.append(real)
        return judge(model, buffer, real)

    monkeypatch.setattr(recovery, "poisoned_chains", recorded)
    session = Session.start(tiny(), digits)
    session.recovery.snapshots[0].tensors["buffer/x"][3] = math.nan
    problem = Diverged(SWITCH + 2, "", {}, onset=SWITCH + 2)  # at full resolution, rolled back to step 0
    assert session.recovery.recover(session.state, problem).details["poisoned_chains"] >= 1
    assert session.state.buffer.x.shape == (20, 1, 4, 4)
    assert session.state.buffer.x.isfinite().all()
    assert torch.allclose(seen[0], averaged(to_box(digits.train.spread(512).inputs)), atol=1e-6)


def test_states_before_and_after_the_switch_are_compared_at_one_resolution(whole):
    at_full, at_low = whole.recovery._class_nll(whole.state), whole.recovery._class_nll(whole.state, 2)
    few = whole.data.train.spread(512)
    with torch.no_grad():
        whole.state.model.train()
        for x, found in ((to_box(few.inputs), at_full), (averaged(to_box(few.inputs)), at_low)):
            assert found == pytest.approx(
                nn.functional.cross_entropy(whole.state.model(x), few.labels).item(), abs=1e-4
            )


def test_validation_is_at_the_resolution_that_is_trained(digits):
    session = Session.start(tiny(ema=0.0), digits)
    images, labels = to_box(digits.validation.inputs), digits.validation.labels
    for row in session.train():
        if "validation_nll" in row:
            session.model.eval()
            x = averaged(images) if row["step"] <= SWITCH else images
            with torch.no_grad():
                expected = nn.functional.cross_entropy(session.model(x), labels).item()
            assert row["validation_nll"] == pytest.approx(expected, abs=1e-4), row["step"]


def test_what_small_images_were_like_is_no_evidence_against_large_ones(digits):
    config = tiny(limits={"window": 4, "accuracy_drop": 0.5}, recovery={"attempts": 0})
    session = Session.start(config, digits)
    for row in session.train():  # an alarm would raise
        if row["step"] == SWITCH - 1:
            session.state.history = ({"step": row["step"], "train_accuracy": 1.0, "best_accuracy": 1.0},)
    assert session.state.step == STEPS
    assert len(session.state.history) == STEPS - SWITCH


def test_the_doctor_judges_each_resolution_by_itself():
    accuracy = [0.2] * 10 + [0.9] * 50 + [0.3] * 10 + [0.7] * 40
    rows = [{"step": step, "train_accuracy": value} for step, value in enumerate(accuracy, 1)]
    found, _ = judge_rows(rows, Limits(window=10))
    assert [one.verdict for one in found] == ["accuracy_collapse"]
    found, _ = judge_rows([{**row, "resolution": 14 if row["step"] <= 60 else 28} for row in rows], Limits(window=10))
    assert found == []


def test_the_radius_of_an_attack_shrinks_with_the_image(digits, monkeypatch):
    radii = []

    def recorded(model, x, y, *, radius, **rest):
        radii.append((x.shape[-1], radius))
        return x

    monkeypatch.setattr(loop, "adversarial_examples", recorded)
    list(Session.start(tiny(attack={"radius": 0.5}), digits).train())
    assert radii == [(4, 0.25)] * SWITCH + [(8, 0.5)] * (STEPS - SWITCH)


def test_the_saved_start_is_that_of_full_resolution(whole, digits):
    saved = load_initial(whole.run, whole.config, digits.box, torch.device("cpu"))
    assert saved.input_shape == (1, 8, 8)
    assert torch.equal(
        saved.mean, ClassGaussian.fit(to_box(digits.train.inputs), digits.train.labels, 10, box=None).mean
    )


def test_a_run_stopped_at_low_resolution_is_loaded_with_a_warning(whole, digits, tmp_path):
    run = stopped_at(SWITCH - 1, whole.run.path, tmp_path / "run")
    chains = load_checkpoint(list_checkpoints(run / "checkpoints")[-1]).tensors["buffer/x"]
    with pytest.warns(UserWarning, match=r"low-resolution phase \(progressive.share 0.5\).*train --resume"):
        trained = load_trained(run, data=digits)
    assert torch.allclose(trained.buffer, interpolated(chains), atol=1e-6)
    assert trained.sample(torch.arange(3), steps=1).shape == (3, 1, 8, 8)


def test_a_plain_classifier_has_a_low_phase_too(digits):
    config = recipe("classifier-small").with_values(**TINY, progressive={"share": 0.5})
    assert [row["resolution"] for row in Session.start(config, digits).train()] == [4] * 5 + [8] * 5


def test_without_a_low_phase_nothing_is_different(digits):
    rows = []
    for progressive in ({"share": 0.0}, {"share": 0.0, "factor": 3}):  # 3 would not even divide 8
        session = Session.start(tiny(network={"name": "conv-4", "norm": "none"}, progressive=progressive), digits)
        rows.append([{name: value for name, value in row.items() if name != "seconds"} for row in session.train()])
    assert rows[0] == rows[1]
    assert all("resolution" not in row for row in rows[0])
    x = torch.rand(2, 3)
    assert pooled(x, 1) is x


def test_a_compiled_gradient_is_for_full_resolution_only(digits):
    trainer = Trainer.create(digits, tiny(), make_fabric(tiny()), execution=Execution("bf16-mixed", compiled=64))
    assert trainer.resolved(0).execution == Execution("bf16-mixed")
    assert trainer.resolved(SWITCH).execution.compiled


@pytest.mark.parametrize("name", ["conv-4", "mlp-8"])
def test_networks_of_one_size_are_refused(digits, name):
    with pytest.raises(ConfigError, match=r"images of 4x4 at first, and this network takes 8x8 only .*wrn-DEPTH-WIDTH"):
        Session.start(tiny(network={"name": name, "norm": "none"}), digits)


def test_a_network_of_ones_own_that_takes_any_size_is_trained(digits):
    own = nn.Sequential(nn.Conv2d(1, 10, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    rows = list(Session.start(tiny(), digits, own).train())
    assert {row["resolution"] for row in rows} == {4, 8}


def test_sides_that_the_factor_does_not_divide_and_vectors_are_refused(digits):
    with pytest.raises(ConfigError, match=r"progressive.factor 3 does not divide the sides of images of 8x8"):
        Session.start(tiny(progressive={"factor": 3}), digits)
    split = Split(torch.randn(40, 6), torch.arange(40) % 2)
    vectors = Dataset("vectors", split, split, split, ("a", "b"))
    plain = {"network": {"name": "mlp-8", "norm": "none"}, "augment": {"crop_padding": 0, "flip": False}}
    with pytest.raises(ConfigError, match=r"for images \(c, h, w\), and inputs have shape \(6,\)"):
        Session.start(tiny(**plain), vectors)


@pytest.mark.parametrize("wrong", [{"share": 1.0}, {"share": -0.1}, {"share": math.nan}, {"factor": 1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=rf"progressive\.{next(iter(wrong))}"):
        ProgressiveConfig(**wrong)
