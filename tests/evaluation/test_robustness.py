"""PGD and the whole section on linear models, where the best attack is known in closed form."""

import json
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from test_attacks import block_weight, breaking_radius, images, linear
from torch import nn

from jemstone.data import Dataset, Split, to_box_radius
from jemstone.energy import EnergyClassifier
from jemstone.errors import ConfigError, DataError, MissingExtra
from jemstone.evaluation import exact_proportion, pgd_accuracy
from jemstone.evaluation.robustness import FULL, QUICK, RobustnessSettings, robustness_section
from jemstone.evaluation.section import WARNINGS, Common, Subject, Work, subset
from jemstone.rng import generator

pytest.importorskip("foolbox")
BOX = (-1.0, 1.0)
EPS = [0.02, 0.05, 0.1]


def linear_model(scale=1.0, shape=(1, 4, 4)):
    """f_1 - f_0 = scale * w.x, and w."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(w.numel(), 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-w.flatten(), w.flatten()]) * scale / 2)
    return EnergyClassifier(nn.Sequential(nn.Flatten(), layer)).eval(), w


def points(w, distances, dual):
    """Points right by `distances` (in [0, 1] pixels, negative = wrong) of the boundary, well inside the box."""
    rng = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (len(distances),), generator=rng)
    x = (torch.rand(len(distances), *w.shape, generator=rng) - 0.5) * 0.4
    x = x - (x.flatten(1) @ w.flatten() / w.norm() ** 2)[:, None, None, None] * w  # onto the boundary
    # Moving by r in the norm changes w.x by r * |w|_dual; r in the box is 2 times r among pixels.
    direction = w.sign() if dual == 1 else w / w.norm()
    side = (2.0 * labels - 1) * 2 * torch.tensor(distances)
    return x + side[:, None, None, None] * direction, labels


@pytest.mark.parametrize("scale", [1.0, 2000.0])  # at 2000 the softmax saturates: cross-entropy has no gradient left
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_accuracy_under_attack_is_the_closed_form_count(norm, dual, scale):
    model, w = linear_model(scale)
    # Per radius: points just closer than it (broken) and just farther (standing). 3 % is the attack's slack in L2.
    distances = [-0.01] + [f * e for e in EPS for f in (0.97, 1.02)] + [0.9 * EPS[0], 1.2 * EPS[2]]
    x, y = points(w, distances, dual)
    assert float(x.abs().max()) + to_box_radius(EPS[-1], BOX) < 1  # the box does not bind
    results, curve = pgd_accuracy(model, x, y, norm=norm, eps=EPS, box=BOX)
    expected = [sum(d > e for d in distances) for e in [0.0, *EPS]]
    assert [r.name for r in results] == [f"pgd_{norm}/{e:g}" for e in EPS]
    assert [round(a * len(x)) for a in curve.accuracy] == expected
    assert curve.eps == [0.0, *EPS]
    for result, k in zip(results, expected[1:], strict=True):
        assert result == exact_proportion(result.name, k, len(x))
    assert [r[1:4] for r in results] == list(zip(curve.accuracy[1:], curve.low[1:], curve.high[1:], strict=True))


def test_attacks_stay_in_the_box():
    """The only way across the boundary is out of the box, so the box must be what saves the point."""
    x = torch.full((1, 1, 4, 4), 0.9)

    class Edge(nn.Module):
        def forward(self, x):
            return torch.stack([torch.zeros(len(x)), 1.1 - x.flatten(1).amax(1)], dim=1)  # class 0 beyond 1.1

    edge = EnergyClassifier(Edge())
    assert pgd_accuracy(edge, x, torch.tensor([1]), norm="linf", eps=[0.4], box=BOX)[1].accuracy == [1, 1]
    assert pgd_accuracy(edge, x, torch.tensor([1]), norm="linf", eps=[0.4], box=(-1.0, 1.5))[1].accuracy == [1, 0]


def test_radii_are_converted_once():
    assert to_box_radius(8 / 255, BOX) == 16 / 255
    assert to_box_radius(0.3, (0.0, 1.0)) == 0.3


def curved_model():
    torch.manual_seed(0)
    return EnergyClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Dropout(0.5), nn.Tanh(), nn.Linear(32, 3))
    )


def curved_case(n=60):
    rng = torch.Generator().manual_seed(2)
    model = curved_model()
    x = torch.rand(n, 1, 4, 4, generator=rng) * 2 - 1
    with torch.no_grad():
        return model, x, model.eval()(x).argmax(dim=1)


def test_the_curve_cannot_rise_and_batches_join():
    model, x, y = curved_case()
    results, curve = pgd_accuracy(model, x, y, norm="l2", eps=[0.3, 0.01, 0.1], box=BOX, steps=5, batch_size=16)
    assert curve.eps == [0, 0.01, 0.1, 0.3]
    assert curve.accuracy[0] == 1
    assert curve.accuracy == sorted(curve.accuracy, reverse=True)
    assert curve.accuracy[-1] < curve.accuracy[1]
    assert all(r.n == 60 for r in results)


def test_an_input_broken_once_stays_broken():
    """A network right near the centre and right again far out: only a smaller perturbation breaks it."""

    class Ring(nn.Module):
        def forward(self, x):
            r = x.flatten(1).norm(dim=1)
            return torch.stack([torch.zeros_like(r), torch.where(r > 1.2, 100.0 + r, 0.9 - r)], dim=1)

    x = torch.tensor([0.7, 0.0])[None, None, None]
    _, curve = pgd_accuracy(
        EnergyClassifier(Ring()), x, torch.tensor([1]), norm="l2", eps=[0.15, 0.4], box=BOX, steps=20
    )
    assert curve.accuracy == [1, 0, 0]


def test_the_same_seed_gives_the_same_numbers_and_leaves_global_randomness_alone():
    model, x, y = curved_case()

    def run(seed):
        # One short step from a random start: what breaks depends on the start.
        return pgd_accuracy(model, x, y, norm="linf", eps=[0.05, 0.1, 0.2], box=BOX, steps=1, seed=seed)

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = run(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert run(0) == first
    assert any(run(seed) != first for seed in range(1, 6))


def test_the_model_is_left_as_it_was():
    model, x, y = curved_case(8)
    model.train()
    model.network[1].eval()
    model.network[4].bias.requires_grad_(False)
    model.network[4].weight.grad = torch.ones_like(model.network[4].weight)
    modes = [m.training for m in model.modules()]
    pgd_accuracy(model, x, y, norm="linf", eps=[0.05], box=BOX, steps=2)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert model.network[1].weight.grad is None
    assert bool((model.network[4].weight.grad == 1).all())


def test_mistakes_are_named(monkeypatch):
    model, x, y = curved_case(4)
    for eps in ([0.0], [-0.1], [float("nan")]):
        with pytest.raises(ConfigError, match="radii must be positive"):
            pgd_accuracy(model, x, y, norm="linf", eps=eps, box=BOX)
    with pytest.raises(DataError, match="must lie in"):
        pgd_accuracy(model, x * 2, y, norm="linf", eps=[0.1], box=BOX)
    with pytest.raises(DataError, match="one label each"):
        pgd_accuracy(model, x[:3], y, norm="linf", eps=[0.1], box=BOX)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(MissingExtra, match=r"jemstone\[attacks\]"):
        pgd_accuracy(model, x, y, norm="linf", eps=[0.1], box=BOX)


WEIGHT = block_weight(4)
QUIET = Work()
LINF, L2 = (0.02, 0.06), (0.05, 0.2)
SMALL = RobustnessSettings(
    images=120, steps=10, restarts=3, linf=LINF, l2=L2, autoattack_images=0, black_box_images=60,
    black_box_queries=200, black_box_linf=0.06,
)  # fmt: skip


def data_set(n=150, *, shape=None):
    x = images(n)
    y = (x.flatten(1) @ WEIGHT.T).argmax(dim=1)
    y[::10] = (y[::10] + 1) % 4
    x = x if shape is None else x.reshape(n, *shape)
    split = Split(x, y)
    return Dataset("linear", split, split, split, ("a", "b", "c", "d"))


def section_of(model, settings=SMALL, *, data=None, seed=0, work=QUIET):
    data = data_set() if data is None else data
    return robustness_section(Subject(model, data), settings, Common(seed=seed, batch_size=64), work)


def truth(n=120, seed=0):
    """Breaking radii of the attacked images, and which images those are."""
    data = data_set()
    chosen = subset(len(data.test), n, seed, "attack")
    chosen = chosen[torch.randperm(len(chosen), generator=generator(seed, "attack", "order"))]
    x, y = data.test.inputs[chosen], data.test.labels[chosen]
    return {norm: breaking_radius(WEIGHT, x, y, norm) for norm in ("linf", "l2")}, x


def close(standing, exact, eps):
    """Equal but for images within 4 % of their boundary."""
    clear = ((exact / eps - 1).abs() > 0.04).numpy()
    return np.array_equal(np.asarray(standing)[clear], (exact > eps).numpy()[clear])


def test_a_healthy_model_raises_no_warning_and_gets_the_closed_form():
    section = section_of(linear(WEIGHT))
    assert (section.warnings, section.notes) == ([], ["AutoAttack left out: autoattack_images = 0."])
    names = [f"pgd_linf/{e:g}" for e in LINF] + [f"pgd_l2/{e:g}" for e in L2] + ["black_box_linf/0.06"]
    assert [r.name for r in section.results] == list(section.examples) == names
    exact, _ = truth()
    for result in section.results:
        norm, eps = ("l2" if "l2" in result.name else "linf"), float(result.name.split("/")[1])
        stands = section.examples[result.name]
        assert stands.dtype == bool
        assert result == exact_proportion(result.name, int(stands.sum()), len(stands))
        if result.name.startswith("pgd"):
            assert len(stands) == 120
            assert close(stands, exact[norm], eps)
        else:
            assert len(stands) == 60
            assert not (stands < (exact[norm][:60] > eps).numpy()).any()


def test_figures_are_laid_out_for_the_report():
    section = section_of(linear(WEIGHT))
    figures = json.loads(json.dumps(section.figures))
    assert figures == section.figures
    assert set(figures) == {"curves", "autoattack", "black_box", "huge", "zero_gradient", "images"}
    by_name = {r.name: r for r in section.results}
    clean = float((truth()[0]["linf"] > 0).float().mean())
    for norm, radii in (("linf", LINF), ("l2", L2)):
        curve = figures["curves"][norm]
        assert curve["eps"] == [0, *radii]
        assert curve["accuracy"] == [pytest.approx(clean), *(by_name[f"pgd_{norm}/{e:g}"].value for e in radii)]
        assert curve["low"][1:] == [by_name[f"pgd_{norm}/{e:g}"].low for e in radii]
        assert curve["high"][1:] == [by_name[f"pgd_{norm}/{e:g}"].high for e in radii]
    black = by_name["black_box_linf/0.06"]
    assert figures["black_box"] == {"eps": 0.06, "accuracy": black.value, "low": black.low, "high": black.high}
    nothing = exact_proportion("", 0, 120)
    assert figures["huge"] == {"eps": 0.5, "accuracy": 0, "low": 0, "high": nothing.high}
    assert (figures["autoattack"], figures["zero_gradient"], figures["images"]) == ({}, 0, 120)


def test_autoattack_takes_the_first_of_the_same_images():
    settings = replace(
        SMALL, linf=(), l2=(), autoattack_images=8, autoattack_linf=(0.05, 0.02), autoattack_l2=(0.1,),
        black_box_images=0,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        from pyautoattack import AutoAttack

        made = AutoAttack.__init__

        def init(self, *args, **kwargs):
            made(self, *args, **kwargs)
            self.square.n_queries = 5
            self.fab.n_iter = 10

        patch.setattr(AutoAttack, "__init__", init)
        section = section_of(linear(WEIGHT), settings)
    assert [r.name for r in section.results] == ["autoattack_linf/0.02", "autoattack_linf/0.05", "autoattack_l2/0.1"]
    exact, _ = truth()
    for name, stands in section.examples.items():
        norm, eps = name.removeprefix("autoattack_").split("/")
        assert close(stands, exact[norm][:8], float(eps))
    assert section.figures["autoattack"]["linf"]["eps"] == [0, 0.02, 0.05]
    assert section.figures["autoattack"]["l2"]["accuracy"][1] == section.results[2].value
    assert [w.name for w in section.warnings] == ["small-n"]
    assert "AutoAttack on 8 images" in section.warnings[0].text
    assert section.figures["curves"] == {}
    assert section.figures["black_box"] is None
    assert section.pictures == {}
    assert section.notes == ["Black-box check left out: black_box_images = 0."]


class Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Before(nn.Module):
    """A network behind something that keeps its values, or nearly, and spoils its gradients."""

    def __init__(self, how):
        super().__init__()
        self.network, self.how = linear(WEIGHT), how

    def forward(self, x):
        return self.network(self.how(x))


def far_data():
    """Images that a random start does not carry over a boundary, even within half of the range of pixels."""
    rng = torch.Generator().manual_seed(3)
    y = torch.randint(4, (150,), generator=rng)
    x = (0.9 * WEIGHT[y].sign()).reshape(150, 1, 5, 5)
    split = Split(x, y)
    return Dataset("far", split, split, split, ("a", "b", "c", "d"))


@pytest.mark.parametrize(
    ("how", "data", "expected"),
    [
        (lambda x: x, data_set, set()),
        (lambda x: x, far_data, set()),
        (lambda x: (x * 64).round() / 64, data_set, {"zero-gradient", "black-box-beats-white-box"}),
        (Flipped.apply, data_set, {"black-box-beats-white-box", "survives-huge-eps"}),
        (lambda x: x.detach(), far_data, {"zero-gradient", "survives-huge-eps"}),
    ],
)
def test_masked_gradients_are_warned_of(how, data, expected):
    model = EnergyClassifier(Before(how)).eval().requires_grad_(False)
    section = section_of(model, replace(SMALL, l2=()), data=data())
    names = {w.name for w in section.warnings}
    assert names >= expected
    assert names <= set(WARNINGS)
    if not expected:
        assert names == set()
    assert section.figures["zero_gradient"] == ("zero-gradient" in expected)
    assert (section.figures["huge"]["low"] > 0.05) == ("survives-huge-eps" in names)


def test_only_images_that_are_right_need_a_gradient():
    """What is wrong already is not attacked. Here the path is cut for exactly those images."""
    x = images(150)
    cut = x[:, 0, 0, 0] > 0
    y = ((x.flatten(1) @ WEIGHT.T).argmax(dim=1) + cut) % 4
    data = Dataset("cut", Split(x, y), Split(x, y), Split(x, y), ("a", "b", "c", "d"))
    model = EnergyClassifier(Before(lambda x: torch.where(x[:, :, :1, :1] > 0, x.detach(), x)))
    settings = replace(SMALL, linf=(), l2=(), black_box_images=0)
    section = section_of(model.eval().requires_grad_(False), settings, data=data)
    assert section.figures["zero_gradient"] == 0
    assert section.warnings == []


def test_few_images_are_warned_of():
    section = section_of(linear(WEIGHT), replace(SMALL, images=30, l2=(), linf=(), black_box_images=0))
    assert [w.name for w in section.warnings] == ["small-n"]
    assert "PGD on 30 images" in section.warnings[0].text


def test_the_picture_shows_images_attack_and_difference():
    settings = replace(SMALL, linf=(0.2, 0.01, 0.05), l2=(), black_box_images=0)
    # Without a gradient the random start is all there is: differences of every size.
    model = EnergyClassifier(Before(lambda x: x.detach())).eval().requires_grad_(False)
    picture = section_of(model, settings).pictures["attacked"]
    assert (picture.columns, tuple(picture.images.shape)) == (10, (30, 1, 5, 5))
    clean, moved, added = picture.images.chunk(3)
    _, x = truth()
    assert torch.equal(clean, x[:10])
    assert float((moved - clean).abs().max()) == pytest.approx(0.1, rel=0.1)  # 0.05 among pixels
    assert torch.allclose(added, (moved - clean) / 0.1, atol=1e-5)
    assert "0.05" in picture.caption
    assert picture.images.abs().max() <= 1


def test_work_is_stored_by_name_and_taken_from_there():
    stored, said = {}, []

    def memo(name, make):
        if name not in stored:
            stored[name] = make()
        return stored[name]

    settings = replace(SMALL, black_box_linf=0.04, black_box_queries=20)
    first = section_of(linear(WEIGHT), settings, work=Work(said.append, memo))
    assert len(stored) == 5  # both curves, the black box, PGD beside it, the huge radius
    assert all(isinstance(a, np.ndarray) for part in stored.values() for a in part.values())
    assert len(said) == 5
    # One step from one start breaks less: equal results come from the store.
    again = section_of(linear(WEIGHT), replace(settings, steps=1, restarts=1), work=Work(memo=memo))
    assert again.results == first.results
    assert section_of(linear(WEIGHT), replace(settings, steps=1, restarts=1)).results != first.results


def test_pgd_beside_the_black_box_starts_from_the_curve():
    """A radius that the curve has not: PGD at it attacks what stood at the largest one below."""
    settings = replace(SMALL, linf=(0.02,), l2=(), black_box_linf=0.04, black_box_queries=1, restarts=1)
    stored = {}

    def memo(name, make):
        stored[name] = make()
        return stored[name]

    section = section_of(linear(WEIGHT), settings, work=Work(memo=memo))
    beside = stored["robustness-pgd-beside-black-box"]["standing"]
    assert np.array_equal(beside[0], section.examples["pgd_linf/0.02"][:60])
    assert close(beside[1], truth()[0]["linf"][:60], 0.04)


def test_the_dearest_attacks_meet_every_class_of_a_sorted_file():
    """Few images, in the order of such a file, would be of its first class alone."""
    data = data_set()
    order = data.test.labels.argsort(stable=True)
    split = Split(data.test.inputs[order], data.test.labels[order])
    data = Dataset("sorted", split, split, split, data.class_names)
    settings = replace(SMALL, black_box_images=20, black_box_queries=1, linf=(0.02,), l2=())
    seen = []

    def search(model, x, y, **_):
        seen.extend(y.tolist())
        return x.clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jemstone.evaluation.robustness.square", search)
        section_of(linear(WEIGHT), settings, data=data)
    assert set(seen) == {0, 1, 2, 3}


def test_one_seed_one_section():
    first, again, other = (section_of(linear(WEIGHT), seed=seed) for seed in (0, 0, 1))
    assert first.results == again.results
    assert all(np.array_equal(first.examples[name], again.examples[name]) for name in first.examples)
    assert other.results != first.results


def test_vectors_are_left_out_with_a_reason():
    network = nn.Linear(25, 4)
    section = section_of(EnergyClassifier(network), data=data_set(shape=(25,)))
    assert section[:4] == ([], {}, {}, [])
    assert "vectors" in section.notes[0]


def test_missing_libraries_are_noted(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    section = section_of(linear(WEIGHT), replace(SMALL, autoattack_images=10, black_box_queries=20))
    assert [r.name for r in section.results][-1] == "black_box_linf/0.06"
    assert not any(r.name.startswith("autoattack") for r in section.results)
    assert "pyautoattack" in section.notes[0]
    assert "jemstone[attacks]" in section.notes[0]
    assert section.warnings == []
    monkeypatch.setitem(sys.modules, "foolbox", None)
    section = section_of(linear(WEIGHT), SMALL)
    assert section[:4] == ([], {}, {}, [])
    assert "foolbox" in section.notes[0]


@pytest.mark.parametrize("settings", [RobustnessSettings(), QUICK, FULL])
def test_settings_survive_json(settings):
    read = json.loads(json.dumps(asdict(settings)))
    assert RobustnessSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in read.items()}) == settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": 0}, {"steps": 0}, {"restarts": 0}, {"autoattack_images": -1}, {"black_box_images": -1},
        {"black_box_queries": 0}, {"linf": (0.1, 0.0)}, {"l2": (-1.0,)}, {"autoattack_linf": (float("nan"),)},
        {"autoattack_l2": (float("inf"),)}, {"black_box_linf": 0.0}, {"huge_linf": -0.5},
    ],
)  # fmt: skip
def test_settings_name_the_field(wrong):
    with pytest.raises(ConfigError, match=rf"RobustnessSettings\.{next(iter(wrong))}"):
        RobustnessSettings(**wrong)
