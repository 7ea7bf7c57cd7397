"""The gradient against exact likelihood, on a 2-D problem whose partition function is a sum over a grid."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from jemstone.data import Batch
from jemstone.energy import EnergyClassifier, energy_gradient
from jemstone.errors import ConfigError
from jemstone.networks.layers import SeparateBatchNorm2d
from jemstone.objective import LossWeights, Negatives, jem_loss
from jemstone.rng import generator
from jemstone.sampling import mala, run_chains

CLASSES = 3
AXIS = torch.linspace(-3, 3, 61, dtype=torch.float64)
GRID = torch.cartesian_prod(AXIS, AXIS)
REPEATS = 400

MARGINAL = LossWeights(class_nll=0.0, marginal=1.0)
JOINT = LossWeights(class_nll=0.0, joint=1.0)
CONDITIONAL = LossWeights(class_nll=0.0, conditional=1.0)
MIXED = LossWeights(class_nll=0.7, marginal=1.3, conditional=0.4)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, CLASSES)).double()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.8)
    return EnergyClassifier(network)


@pytest.fixture
def data():
    """Three clusters of points on the grid's square, with their labels."""
    rng = generator(0, "data")
    labels = torch.arange(60) % CLASSES
    centres = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.5]], dtype=torch.float64)
    return Batch(centres[labels] + 0.4 * torch.randn(60, 2, generator=rng, dtype=torch.float64), labels)


def exact_nll(model, data, weights):
    """The negative log-likelihood that the weights stand for, with Z summed over the grid."""
    logits, grid_logits = model(data.x), model(GRID)
    log_z = grid_logits.logsumexp(dim=1).logsumexp(dim=0)
    log_z_class = grid_logits.logsumexp(dim=0)
    own = logits.gather(1, data.y[:, None]).squeeze(1)
    log_joint = own - log_z
    log_marginal = logits.logsumexp(dim=1) - log_z
    log_posterior = logits.log_softmax(dim=1).gather(1, data.y[:, None]).squeeze(1)
    log_conditional = own - log_z_class[data.y]
    total = weights.class_nll * log_posterior + weights.marginal * log_marginal
    total = total + weights.joint * log_joint + weights.conditional * log_conditional
    return -total.mean()


def exact_negatives(model, data, rng):
    """Exact draws from the grid's p(x) and, for each label of the data, from p(x|y)."""
    with torch.no_grad():
        logits = model(GRID)
    marginal = GRID[torch.multinomial(logits.logsumexp(dim=1).softmax(dim=0), len(data.y), True, generator=rng)]
    by_class = logits.softmax(dim=0).T
    cells = torch.multinomial(by_class[data.y], 1, generator=rng).squeeze(1)
    return Negatives(marginal, Batch(GRID[cells], data.y))


def flat_gradient(scalar, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, list(model.parameters()))])


def z_scores(samples, exact):
    """Deviations in standard errors; entries that do not vary (a bias that cancels) must be exact themselves."""
    error, spread = samples.mean(dim=0) - exact, samples.std(dim=0) / len(samples) ** 0.5
    fixed = spread < 1e-12
    assert error[fixed].abs().max() < 1e-9 if fixed.any() else True
    return error[~fixed] / spread[~fixed]


@pytest.mark.parametrize("weights", [MARGINAL, JOINT, CONDITIONAL, MIXED], ids=["x", "xy", "x|y", "mixed"])
def test_sampled_gradient_agrees_with_exact_likelihood(model, data, weights):
    exact = flat_gradient(exact_nll(model, data, weights), model)
    sampled = []
    for repeat in range(REPEATS):
        negatives = exact_negatives(model, data, generator(repeat, "negatives"))
        sampled.append(flat_gradient(jem_loss(model, data, data, negatives, weights).total, model))
    z = z_scores(torch.stack(sampled), exact)
    assert z.abs().max() < 4.5
    # Power: with the two terms swapped, as the paper's Algorithm 1 prints them, the same test fails beyond doubt.
    assert z_scores(-torch.stack(sampled), exact).abs().max() > 20


def test_gradient_from_langevin_chains_agrees_with_exact_likelihood(model, data):
    exact = flat_gradient(exact_nll(model, data, MARGINAL), model)
    chains = 60 * 40
    x = torch.rand(chains, 2, generator=generator(0, "start"), dtype=torch.float64) * 6 - 3
    x, info = run_chains(mala(0.15, box=(-3.0, 3.0)), x, energy_gradient(model), 400, generator(0, "chains"))
    assert info.accepted.mean() > 0.3
    sampled = torch.stack(
        [flat_gradient(jem_loss(model, None, data, Negatives(part), MARGINAL).total, model) for part in x.split(60)]
    )
    assert z_scores(sampled, exact).abs().max() < 4.5


@pytest.mark.parametrize("weights", [MARGINAL, JOINT, CONDITIONAL], ids=["x", "xy", "x|y"])
def test_one_step_raises_the_likelihood_of_data_relative_to_negatives(model, data, weights):
    negatives = exact_negatives(model, data, generator(0, "negatives"))
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    jem_loss(model, data, data, negatives, weights).total.backward()
    optimizer.step()

    def advantage(model):
        y = None if weights is MARGINAL else data.y
        if weights is CONDITIONAL:
            return (model.log_density(data.x, y) - model.log_density(*negatives.conditional)).mean()
        return model.log_density(data.x, y).mean() - model.log_density(negatives.marginal).mean()

    assert advantage(model) > advantage(before)
    assert exact_nll(model, data, weights) < exact_nll(before, data, weights)


def test_joint_is_class_nll_plus_marginal(model, data):
    negatives = exact_negatives(model, data, generator(0, "negatives"))
    joint = jem_loss(model, None, data, negatives, JOINT).total
    sum_of_both = jem_loss(model, data, data, negatives, LossWeights(class_nll=1.0, marginal=1.0)).total
    assert torch.allclose(joint, sum_of_both)


def test_unlabelled_rows_train_the_marginal_alone(model, data):
    negatives = exact_negatives(model, data, generator(0, "negatives"))
    hidden = Batch(data.x, torch.where(torch.arange(60) < 45, -1, data.y))
    known = Batch(data.x[45:], data.y[45:])
    weights = LossWeights(class_nll=1.0, marginal=1.0)
    loss = jem_loss(model, hidden, hidden, negatives, weights)
    assert torch.allclose(loss.class_nll, jem_loss(model, known, data, negatives, weights).class_nll)
    assert torch.allclose(loss.energy_real, model.energy(data.x).mean())
    # With no label at all the classification term is 0 and the marginal stays.
    none = Batch(data.x, torch.full((60,), -1))
    alone = jem_loss(model, none, none, negatives, weights)
    assert alone.class_nll == 0
    assert torch.allclose(alone.total, jem_loss(model, None, data, negatives, MARGINAL).total)
    joint = jem_loss(model, none, none, negatives, replace(JOINT, marginal=0.5))
    assert torch.allclose(joint.total, 0.5 * alone.energy_gap)


def test_a_batch_without_a_label_gives_log_p_of_x_given_y_a_gradient_of_zero(model, data):
    hidden = Batch(data.x, torch.full((60,), -1))
    negatives = Negatives(conditional=Batch(data.x[:0], data.y[:0]))
    loss = jem_loss(model, None, hidden, negatives, CONDITIONAL)
    assert loss.conditional_gap == 0
    assert (flat_gradient(loss.total, model) == 0).all()


def test_energy_l2_adds_the_squares_of_both_batches(model, data):
    negatives = exact_negatives(model, data, generator(0, "negatives"))
    plain = jem_loss(model, None, data, negatives, MARGINAL)
    anchored = jem_loss(model, None, data, negatives, replace(MARGINAL, energy_l2=0.1))
    squares = model.energy(data.x).square().mean() + model.energy(negatives.marginal).square().mean()
    assert torch.allclose(anchored.total, plain.total + 0.1 * squares)


def test_no_gradient_flows_into_negatives(model, data):
    negatives = exact_negatives(model, data, generator(0, "negatives"))
    x = negatives.marginal.requires_grad_()
    jem_loss(model, None, data, Negatives(x), MARGINAL).total.backward()
    assert x.grad is None


def test_loss_reports_what_it_is_made_of(model, data):
    negatives = exact_negatives(model, data, generator(0, "negatives"))
    loss = jem_loss(model, data, data, negatives, MIXED)
    rebuilt = 0.7 * loss.class_nll + 1.3 * loss.energy_gap + 0.4 * loss.conditional_gap
    assert torch.allclose(loss.total, rebuilt)
    assert torch.allclose(loss.energy_gap, loss.energy_real - loss.energy_negatives)
    assert loss.accuracy == (model(data.x).argmax(dim=1) == data.y).float().mean()
    assert not loss.class_nll.requires_grad


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LossWeights(class_nll=-1.0), "class_nll must be finite and not negative"),
        (lambda: LossWeights(class_nll=0.0), "All loss weights are 0"),
        (lambda: LossWeights(energy_l2=0.1), "anchors a generative term"),
    ],
)
def test_contradictory_weights_are_explained(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize(
    ("weights", "message"),
    [(LossWeights(), "no labelled batch"), (MARGINAL, "negatives from p"), (CONDITIONAL, r"from p\(x\|y\)")],
)
def test_missing_batches_are_explained(model, data, weights, message):
    with pytest.raises(ConfigError, match=message):
        jem_loss(model, None, data, Negatives(), weights)
    with pytest.raises(ConfigError, match="no real batch"):
        jem_loss(model, data, None, Negatives(), MARGINAL)


EVERYTHING = LossWeights(class_nll=0.7, marginal=1.3, joint=0.2, conditional=0.4, discrimination=0.6, energy_l2=0.05)


@pytest.mark.parametrize("statistics", ["batch", "shared", "separate", "frozen"])
@pytest.mark.parametrize("weights", [MARGINAL, JOINT, CONDITIONAL, MIXED, EVERYTHING], ids=str)
def test_parts_sum_to_the_total_and_share_no_graph(model, data, weights, statistics):
    negatives = exact_negatives(model, data, generator(0, "negatives"))
    loss = jem_loss(model, data, data, negatives, weights, statistics=statistics)
    generative = ["generative"] if statistics == "shared" else ["real", "negatives"]
    assert list(loss.parts) == (["class"] if weights.class_nll else []) + generative
    assert torch.allclose(sum(loss.parts.values()), loss.total)
    # Each backward frees its own graph: a graph that two parts shared could not be walked a second time.
    summed = sum(flat_gradient(part, model) for part in loss.parts.values())
    again = jem_loss(model, data, data, negatives, weights, statistics=statistics)
    assert torch.allclose(summed, flat_gradient(again.total, model))


def batchnorm_model(separate=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = SeparateBatchNorm2d(4) if separate else nn.BatchNorm2d(4)
        network = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.SiLU(), nn.Flatten(), nn.Linear(16, CLASSES))
    return EnergyClassifier(network).train(), norm


def images(count, name, shift=0.0):
    return torch.randn(count, 1, 4, 4, generator=generator(0, name)) + shift


def test_shared_statistics_make_real_images_and_negatives_one_batch():
    model, norm = batchnorm_model()
    real, negatives = images(6, "real"), images(5, "negatives", shift=2.0)
    twin = copy.deepcopy(model)
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    loss = jem_loss(
        model, None, Batch(real, torch.zeros(6).long()), Negatives(negatives), MARGINAL, statistics="shared"
    )
    logits = twin(torch.cat([real, negatives]))
    assert seen == [11]
    assert torch.equal(loss.logits_real, logits[:6].detach())
    assert torch.equal(loss.logits_negatives, logits[6:].detach())
    for mine, expected in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, expected)  # and both move the running averages


def test_batches_of_their_own_leave_running_averages_to_data():
    model, _ = batchnorm_model()
    real, negatives = images(6, "real"), images(5, "negatives", shift=2.0)
    twin = copy.deepcopy(model)
    loss = jem_loss(model, None, Batch(real, torch.zeros(6).long()), Negatives(negatives), MARGINAL)
    assert torch.equal(loss.logits_real, twin(real).detach())
    for mine, expected in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, expected)
    assert torch.equal(loss.logits_negatives, copy.deepcopy(twin)(negatives).detach())
    assert loss.norm_distance > 0.5


def test_separate_statistics_give_negatives_a_second_set():
    model, norm = batchnorm_model(separate=True)
    alone, of_data = batchnorm_model(separate=True)
    real, negatives = images(6, "real"), images(5, "negatives", shift=2.0)
    before = {name: value.clone() for name, value in norm.named_buffers()}
    weights = LossWeights(class_nll=0.0, marginal=1.0, conditional=0.5)
    y = torch.zeros(6).long()
    conditional = Batch(images(6, "conditional", shift=-1.0), y)
    jem_loss(model, None, Batch(real, y), Negatives(negatives, conditional), weights, statistics="separate")
    alone(real)
    moved = {name for name, value in norm.named_buffers() if not torch.equal(value, before[name])}
    assert {name for name in moved if name.startswith("negatives_")}
    for name, value in norm.named_buffers():
        if not name.startswith("negatives_"):
            assert torch.equal(value, dict(of_data.named_buffers())[name]), name  # data's set: real images alone
    features = model.network[0](negatives)
    second = model.network[0](conditional.x)
    once = 0.1 * features.mean(dim=(0, 2, 3))
    assert torch.allclose(norm.negatives_mean, 0.9 * once + 0.1 * second.mean(dim=(0, 2, 3)), atol=1e-6)


def test_discrimination_is_the_cross_entropy_of_a_logistic_regression_on_the_energy(model, data):
    negatives = exact_negatives(model, data, generator(0, "negatives"))
    weights = LossWeights(class_nll=0.0, discrimination=1.0)
    loss = jem_loss(model, None, data, negatives, weights)
    logits = -torch.cat([model.energy(data.x), model.energy(negatives.marginal)])
    truth = torch.cat([torch.ones(60), torch.zeros(60)]).double()
    expected = 2 * nn.functional.binary_cross_entropy_with_logits(logits, truth)  # a mean over each of two batches
    assert torch.allclose(loss.total, expected)
    assert torch.allclose(loss.discrimination, expected)
    assert torch.allclose(flat_gradient(loss.total, model), flat_gradient(expected, model))


def test_a_step_on_discrimination_lowers_energies_of_data_and_raises_those_of_negatives():
    energies = nn.Parameter(torch.tensor([[0.3], [-0.2], [0.5]]))  # one class: the energy is minus the logit

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.energies = energies

        def forward(self, x):
            return -self.energies[x.long().flatten()]

    weights = LossWeights(class_nll=0.0, discrimination=1.0)
    real, negatives = Batch(torch.tensor([[0.0], [1.0]]), torch.zeros(2).long()), Negatives(torch.tensor([[2.0]]))
    jem_loss(EnergyClassifier(Table()), None, real, negatives, weights).total.backward()
    with torch.no_grad():
        exact = torch.cat([energies[:2].sigmoid() / 2, -(-energies[2:]).sigmoid()])
    assert torch.allclose(energies.grad, exact)
    assert (energies.grad[:2] > 0).all()
    assert (energies.grad[2] < 0).all()


def test_an_anchor_covers_conditional_negatives_too(model, data):
    negatives = exact_negatives(model, data, generator(0, "negatives"))
    plain = jem_loss(model, None, data, negatives, CONDITIONAL)
    anchored = jem_loss(model, None, data, negatives, replace(CONDITIONAL, energy_l2=0.1))
    squares = model.energy(data.x).square().mean() + model.energy(*negatives.conditional).square().mean()
    assert torch.allclose(anchored.total, plain.total + 0.1 * squares)
    assert torch.allclose(anchored.energy_l2, squares)


def test_there_is_no_norm_distance_where_there_is_nothing_to_compare(model, data):
    negatives = exact_negatives(model, data, generator(0, "negatives"))
    assert jem_loss(model, data, data, negatives, MIXED).norm_distance is None  # no BatchNorm
    network, _ = batchnorm_model()
    batch, others = Batch(images(6, "real"), torch.zeros(6).long()), Negatives(images(5, "negatives"))
    assert jem_loss(network, None, batch, others, MARGINAL).norm_distance is not None
    assert jem_loss(network, None, batch, others, MARGINAL, statistics="shared").norm_distance is None
    assert jem_loss(network, batch, None, Negatives(), LossWeights()).norm_distance is None
