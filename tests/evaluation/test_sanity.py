"""Every doubt is raised by a model or a data set built to deserve it, and by no other."""

import pytest
import torch
from torch import nn

from jemstone.data.dataset import Dataset, Split
from jemstone.energy import EnergyClassifier
from jemstone.evaluation.sanity import sanity_warnings
from jemstone.evaluation.section import WARNINGS, Subject


def split(n, seed, shape=(1, 6, 6)):
    rng = torch.Generator().manual_seed(seed)
    return Split(torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=rng), torch.arange(n) % 3)


def dataset(train=None, validation=None, test=None):
    validation = split(50, 1) if validation is None else validation
    return Dataset("toy", train or split(200, 0), validation, test or split(120, 2), ("a", "b", "c"))


def joined(a, b):
    return Split(torch.cat([a.inputs, b.inputs]), torch.cat([a.labels, b.labels]))


class Noisy(nn.Module):
    def forward(self, x):
        return x + 0.01 * torch.randn(x.shape)


def classifier(*layers):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 8, 3), *layers, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 3))
    return EnergyClassifier(body).eval()


def names(model=None, data=None):
    warned = sanity_warnings(Subject(model or classifier(), data or dataset()))
    assert {warning.name for warning in warned} <= set(WARNINGS)
    return {warning.name: warning.text for warning in warned}


def test_a_trained_batchnorm_network_is_healthy():
    model = classifier(nn.BatchNorm2d(8), nn.Dropout(0.5))
    model.train()
    for seed in range(3):
        model(torch.rand(32, 1, 6, 6, generator=torch.Generator().manual_seed(seed)))
    assert names(model.eval()) == {}


def test_another_kernel_for_another_batch_size_is_no_dependence():
    class Kernel(nn.Module):
        """Rounds by a percent, one way for single inputs and the other for batches: half precision, overdone."""

        def forward(self, x):
            return x * (1.01 if len(x) == 1 else 0.99)

    assert names(classifier(Kernel())) == {}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8, track_running_stats=False), nn.BatchNorm2d(8, affine=False)])
def test_batch_statistics_are_a_dependence(norm):
    model = classifier(norm)
    if norm.track_running_stats:
        norm.train()  # a module forgotten in training mode is no different
    assert set(names(model)) == {"batch-dependence"}


def test_batch_statistics_of_vectors_are_a_dependence():
    model = EnergyClassifier(
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36, track_running_stats=False), nn.Linear(36, 3))
    )
    assert set(names(model.eval())) == {"batch-dependence"}


def test_noise_is_random_and_no_dependence():
    model = classifier(Noisy())
    state = torch.random.get_rng_state()
    assert set(names(model)) == {"random-logits"}
    assert torch.equal(torch.random.get_rng_state(), state)


def test_both_are_told():
    both = classifier(Noisy(), nn.BatchNorm2d(8, track_running_stats=False))
    assert set(names(both)) == {"batch-dependence", "random-logits"}


def test_constant_logits_are_healthy():
    model = classifier()
    nn.init.zeros_(model.network[-1].weight)
    assert names(model) == {}


def test_small_n():
    assert names(data=dataset(test=split(99, 2))) == {"small-n": "The test split has 99 examples."}
    assert names(data=dataset(test=split(100, 2))) == {}


def test_a_validation_split_that_is_the_test_split():
    found = names(data=dataset(validation=split(120, 2)))
    assert found == {"test-selected": "120 of 120 validation inputs are test inputs."}


@pytest.mark.parametrize(("shared", "expected"), [(1, set()), (2, {"test-selected"})])
def test_one_validation_example_may_be_a_test_example(shared, expected):
    test = split(120, 2)
    few = Split(test.inputs[:shared], test.labels[:shared])
    assert set(names(data=dataset(validation=joined(split(50, 1), few)))) == expected


@pytest.mark.parametrize(("shared", "expected"), [(2, set()), (3, {"train-test-overlap"})])
def test_a_hundredth_of_the_test_examples_may_be_training_examples(shared, expected):
    train = split(200, 0)
    test = joined(Split(train.inputs[:shared], train.labels[:shared]), split(200 - shared, 2))
    assert set(names(data=dataset(train=train, test=test))) == expected


def test_examples_are_counted_where_they_do_harm():
    """One test image that training and validation hold many times is one test image, and many for validation."""
    test = split(120, 2)
    copies = Split(test.inputs[:1].repeat(50, 1, 1, 1), test.labels[:1].repeat(50))
    assert names(data=dataset(train=joined(split(150, 0), copies))) == {}
    found = names(data=dataset(validation=copies))
    assert found == {"test-selected": "50 of 50 validation inputs are test inputs."}


def test_an_empty_validation_split_is_no_doubt():
    assert names(data=dataset(validation=split(0, 1))) == {}


def test_stored_and_float_images_are_compared():
    test = split(120, 2)
    floats = Split(test.inputs.float() * (2 / 255) - 1, test.labels)
    assert set(names(data=dataset(validation=floats))) == {"test-selected"}
