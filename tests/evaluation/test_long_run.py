"""Long chains on energies whose law is known; R-hat against its formula; distances against scipy."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from torch import nn

from jemstone.data import Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError
from jemstone.evaluation.forward import frozen
from jemstone.evaluation.long_run import (
    FULL,
    QUICK,
    LongRunSettings,
    distances,
    long_run_section,
    mean_distance,
    split_r_hat,
)
from jemstone.evaluation.section import Chains, Common, Subject, Work
from jemstone.networks.layers import SeparateBatchNorm2d
from jemstone.rng import generator
from jemstone.sampling import langevin, uniform

COMMON = Common(resamples=200)


class Function(nn.Module):
    """Logits (b, 2) whose logsumexp is minus `energy`."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, x):
        log_f = -self.energy(x)
        return torch.stack([log_f + math.log(0.3), log_f + math.log(0.7)], dim=1)


def subject(network, inputs, sampler, *, life=20, initial=None):
    labels = torch.arange(len(inputs)) % 2
    splits = [Split(inputs, labels)] * 3
    shape = tuple(inputs.shape[1:])
    box = (-1.0, 1.0) if len(shape) == 3 else None
    chains = Chains(initial or uniform(shape, box), sampler, steps=5, life=life)
    return Subject(
        EnergyClassifier(network).eval().requires_grad_(False), Dataset("toy", *splits, ("a", "b")), chains=chains
    )


def measured(of, settings, common=COMMON, work=Work()):  # noqa: B008
    with frozen(of.model):
        section = long_run_section(of, settings, common, work)
    json.dumps(section.figures, allow_nan=False)
    return {result.name: result for result in section.results}, section


def half_square(x):
    return x.flatten(1).square().sum(dim=1) / 2


def proper_langevin(step):
    return langevin(step, math.sqrt(2 * step))


GAUSSIAN = torch.randn(300, 2, generator=generator(0))


def test_chains_that_sample_the_density_of_the_data():
    of = subject(Function(half_square), GAUSSIAN, proper_langevin(0.1), life=60)
    results, section = measured(of, LongRunSettings(chains=50))
    assert section.warnings == []
    assert section.figures["r_hat"] < 1.1
    drift, diversity = results["long_run/energy_drift"], results["long_run/diversity"]
    assert drift.low < 0 < drift.high
    assert diversity.low < 1 < diversity.high
    assert results["long_run/survived"].value >= 0.9
    assert [results[name].n for name in results] == [50, 50, 50]


def test_two_wells_at_low_temperature_do_not_mix():
    def energy(x):
        return 20 * (x[:, 0].square() - 1).square() + 2 * x[:, 0] + half_square(x[:, 1:])

    start = uniform((2,), (-1.5, 1.5))
    of = subject(Function(energy), GAUSSIAN, langevin(0.002, 0.01), life=40, initial=start)
    section = measured(of, LongRunSettings(chains=20))[1]
    assert [warned.name for warned in section.warnings] == ["chains-not-mixed"]
    assert section.figures["r_hat"] > 1.5


def test_recorded_energies_are_those_of_the_closed_form_at_each_time():
    """Without noise x_t = (1 - a)^t x_0, and so E_t = (1 - a)^(2 t) E_0, whichever segment t lies in."""
    of = subject(Function(half_square), GAUSSIAN, langevin(0.02, 0.0), life=30)
    results, section = measured(of, LongRunSettings(chains=16, factor=6))
    steps = np.array(section.figures["steps"])
    assert {0, 1, 30, 60, 150, 180} <= set(steps.tolist())
    assert list(steps) == sorted(set(steps.tolist()))
    decay = 0.98 ** (2 * steps)
    for name in ("median", "low", "high"):
        values = np.array(section.figures["energy"][name])
        np.testing.assert_allclose(values, values[0] * decay, rtol=1e-3)
    np.testing.assert_allclose(
        section.figures["diversity"], section.figures["diversity"][0] * np.sqrt(decay), rtol=1e-3
    )
    start = of.chains.initial(torch.arange(16) % 2, of.generator(0, "long run", "start"))
    mean = half_square(start).mean().item()
    assert results["long_run/energy_drift"].value == pytest.approx(mean * (0.98**360 - 0.98**60), rel=1e-3)
    unit = pdist(GAUSSIAN.numpy()).mean()
    assert section.figures["diversity"][0] == pytest.approx(pdist(start.numpy()).mean() / unit, rel=0.05)
    np.testing.assert_allclose(section.figures["confidence"], 0.7, atol=1e-6)
    assert set(section.figures["classes"]) == {1}
    # The trace of R-hat is that of the second half: E_t of every chain for t in [90, 180).
    trace = half_square(start).numpy()[:, None] * 0.98 ** (2 * np.arange(90, 180))
    assert section.figures["r_hat"] == pytest.approx(r_hat_by_formula(trace), rel=1e-3)


def test_survivors_are_those_within_the_energies_of_the_data():
    """Chains that never move: those which started within the data's 0.5 % to 99.5 % of energies survive."""
    of = subject(Function(half_square), GAUSSIAN, langevin(1e-12, 0.0), life=4)
    results, section = measured(of, LongRunSettings(chains=30, factor=2))
    start = half_square(of.chains.initial(torch.arange(30) % 2, of.generator(0, "long run", "start"))).numpy()
    low, high = np.quantile(half_square(GAUSSIAN).numpy(), (0.005, 0.995))
    assert results["long_run/survived"].value == pytest.approx(((start >= low) & (start <= high)).mean())
    assert 0 < results["long_run/survived"].value < 1
    median = np.median(half_square(GAUSSIAN).numpy())
    assert section.figures["data_energy"]["median"] == pytest.approx(median, rel=1e-5)
    # Chains that stand still are not a sample, although nothing about them is in motion.
    assert section.figures["r_hat"] is None
    assert [warned.name for warned in section.warnings] == ["chains-not-mixed"]
    assert "do not move" in section.warnings[0].text


def images(n=40):
    return torch.randint(0, 256, (n, 1, 3, 3), generator=generator(1), dtype=torch.uint8)


def test_chains_that_leave_the_box():
    outwards = Function(lambda x: -3 * x.flatten(1).sum(dim=1))
    section = measured(subject(outwards, images(), langevin(0.01, 0.02), life=10), QUICK)[1]
    assert "chains-left-box" in [warned.name for warned in section.warnings]
    kept = langevin(0.01, 0.02, box=(-1.0, 1.0))
    section = measured(subject(outwards, images(), kept, life=10), QUICK)[1]
    assert "chains-left-box" not in [warned.name for warned in section.warnings]


def test_picture_shows_the_same_chains_at_each_time():
    of = subject(Function(half_square), images(), langevin(0.05, 0.0), life=5)
    picture = measured(of, LongRunSettings(chains=16))[1].pictures["long_run"]
    assert picture.columns == 10
    assert "0, 5, 10, 25, 50 steps" in picture.caption
    rows = picture.images.view(5, 10, 1, 3, 3)
    for row, t in enumerate((0, 5, 10, 25, 50)):
        torch.testing.assert_close(rows[row], rows[0] * 0.95**t)
    assert len(measured(of, QUICK)[1].pictures["long_run"].images) == 30  # start, life, and 2x, which is the end


@pytest.mark.parametrize("batch_size", [256, 7])
def test_a_killed_evaluation_goes_on_bitwise(batch_size):
    of = subject(Function(half_square), images(), proper_langevin(0.01), life=15)
    common, settings = Common(resamples=50, batch_size=batch_size), LongRunSettings(chains=16, factor=3)
    whole = measured(of, settings, common)[1]
    stored, made = {}, []

    def until(limit):
        def memo(name, make):
            if name not in stored:
                if len(made) == limit:
                    raise KeyboardInterrupt
                made.append(name)
                stored[name] = {key: values.copy() for key, values in make().items()}
            return stored[name]

        return Work(memo=memo)

    with pytest.raises(KeyboardInterrupt):
        measured(of, settings, common, until(8))
    resumed = measured(of, settings, common, until(99))[1]
    assert len(made) == len(set(made)) == 20
    assert resumed.results == whole.results
    assert resumed.figures == whole.figures
    assert torch.equal(resumed.pictures["long_run"].images, whole.pictures["long_run"].images)


def test_segments_have_streams_of_their_own():
    """Free diffusion of n steps has variance n s^2; noise repeated in each of 20 segments would give 20 times that."""
    of = subject(Function(lambda x: 0 * half_square(x)), torch.randn(50, 40), langevin(1.0, 0.1), life=50)
    ends = {}
    measured(of, LongRunSettings(chains=40, factor=2), work=Work(memo=lambda name, make: ends.setdefault(name, make())))
    start = of.chains.initial(torch.arange(40) % 2, of.generator(0, "long run", "start"))
    moved = ends["long-run-segment-19"]["x"] - start.numpy()
    assert moved.var() == pytest.approx(100 * 0.01, rel=0.15)


def test_chains_that_blow_up_end_the_figures_and_have_not_survived():
    def energy(x):  # the quadratic of test inputs, and a cliff beyond 3 that no float holds
        return torch.where(x[:, 0] > 3, torch.nan, 1.0) * half_square(x) - 2 * x[:, 0]

    start = uniform((2,), (-1.0, 1.0))
    of = subject(Function(energy), GAUSSIAN.clamp(max=2.5), proper_langevin(0.02), life=50, initial=start)
    results, section = measured(of, LongRunSettings(chains=40))
    assert set(results) == {"long_run/survived"}
    assert results["long_run/survived"].value < 1
    figures = section.figures
    steps = figures["steps"]
    assert 0 < len(steps) < 41
    lengths = {len(figures["energy"][name]) for name in ("median", "low", "high")}
    assert lengths | {len(figures[name]) for name in ("diversity", "confidence", "classes")} == {len(steps)}
    assert figures["r_hat"] is None
    assert [warned.name for warned in section.warnings] == ["chains-not-mixed"]
    assert f"after step {steps[-1]}" in section.notes[0]
    beyond = subject(Function(energy), GAUSSIAN.clamp(max=2.5), proper_langevin(0.02), initial=uniform((2,), (4, 5)))
    results, section = measured(beyond, QUICK)
    assert results["long_run/survived"].value == 0
    assert section.figures["steps"] == section.figures["energy"]["median"] == []
    assert "from the start" in section.notes[0]


def test_data_without_energies_leave_nothing_to_compare_with():
    everywhere = subject(Function(lambda x: half_square(x) * torch.nan), images(), proper_langevin(0.02))
    section = measured(everywhere, QUICK)[1]
    assert (section.results, section.figures) == ([], {})
    assert "test inputs" in section.notes[0]


def test_without_chains_or_without_distances_there_is_less_to_say():
    of = subject(Function(half_square), torch.zeros(20, 2), proper_langevin(0.1))
    results, section = measured(of, QUICK)
    assert "long_run/diversity" not in results
    assert set(section.figures["diversity"]) == {None}
    assert "differ" in section.notes[0]
    empty = measured(Subject(of.model, of.data), QUICK)[1]
    assert (empty.results, empty.figures) == ([], {})
    assert "no sampler" in empty.notes[0]


def test_negatives_see_their_own_statistics_and_data_see_theirs():
    seen = []

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = SeparateBatchNorm2d(1)

        def forward(self, x):
            seen.append((len(x), self.norm.of_negatives))
            return self.norm(x).flatten(1)[:, :2]

    measured(subject(Recorder(), images(), proper_langevin(0.01)), QUICK)
    assert set(seen) == {(20, True), (40, False)}


def test_the_global_stream_is_left_alone_and_the_seed_decides():
    of = subject(Function(half_square), GAUSSIAN, proper_langevin(0.1))
    before = torch.random.get_rng_state()
    first, again = measured(of, QUICK)[1], measured(of, QUICK)[1]
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.figures == again.figures
    assert measured(of, QUICK, Common(seed=1, resamples=50))[1].figures != first.figures


def r_hat_by_formula(traces):
    """Vehtari et al. 2021, eq. 1-4, term by term on split chains."""
    n = traces.shape[1] // 2
    chains = [list(part) for trace in traces for part in (trace[:n], trace[len(trace) - n :])]
    m = len(chains)
    means = [sum(chain) / n for chain in chains]
    grand = sum(means) / m
    between = n / (m - 1) * sum((mean - grand) ** 2 for mean in means)
    spreads = [sum((value - mean) ** 2 for value in chain) / (n - 1) for chain, mean in zip(chains, means, strict=True)]
    within = sum(spreads) / m
    return math.sqrt(((n - 1) / n * within + between / n) / within)


@pytest.mark.parametrize("draws", [40, 41])
def test_r_hat_is_the_formula(draws):
    rng = np.random.default_rng(0)
    traces = rng.normal(size=(5, draws)) + np.arange(5)[:, None] * 0.5
    assert split_r_hat(traces) == pytest.approx(r_hat_by_formula(traces), rel=1e-12)


def test_r_hat_of_what_mixes_drifts_or_stands_still():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(20, 500))
    assert split_r_hat(noise) < 1.02
    assert split_r_hat(noise + np.linspace(0, 8, 500)) > 1.5  # a drift that all share: chains agree, halves do not
    assert split_r_hat(noise + 3 * rng.normal(size=(20, 1))) > 1.5
    assert math.isnan(split_r_hat(np.ones((4, 10))))
    assert math.isnan(split_r_hat(np.full((4, 498), 0.1)))
    assert split_r_hat(np.ones((4, 10)) * np.arange(4)[:, None]) == math.inf
    assert math.isnan(split_r_hat(np.full((4, 10), np.nan)))
    assert math.isnan(split_r_hat(noise[:, :3]))


def test_mean_distance_is_over_pairs_of_different_inputs():
    x = torch.randn(9, 4, generator=generator(2), dtype=torch.float64)
    table = distances(x)
    assert mean_distance(table) == pytest.approx(pdist(x.numpy()).mean())
    rows = np.array([0, 0, 3, 5, 5, 5])
    by_hand = [np.linalg.norm(x[i] - x[j]) for i in rows for j in rows if i != j]
    assert mean_distance(table, rows) == pytest.approx(np.mean(by_hand))


@pytest.mark.parametrize("field", ["chains", "factor", "points"])
def test_settings_are_checked(field):
    with pytest.raises(ConfigError, match=field):
        LongRunSettings(**{field: 0})
    assert getattr(QUICK, field) <= getattr(FULL, field)
