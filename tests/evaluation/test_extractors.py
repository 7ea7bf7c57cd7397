"""The legacy resize against a loop, `pixels` against an SVD, Inception files and torch-fidelity through stand-ins."""

import hashlib
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

import jemstone
from jemstone.data import Dataset, Split
from jemstone.errors import ConfigError, DataError, MissingExtra
from jemstone.evaluation.extractors import Extractor, legacy_bilinear, make_extractor, parse_spec, unit_images
from jemstone.evaluation.features import features_of

CPU = torch.device("cpu")


def brute_force(image, size):
    """One channel (h, w), pixel by pixel: output i reads from source position i * in / out."""
    height, width = image.shape
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * height / size, j * width / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            v, u = y - top, x - left
            out[i, j] = (
                (1 - v) * (1 - u) * image[top, left]
                + (1 - v) * u * image[top, right]
                + v * (1 - u) * image[bottom, left]
                + v * u * image[bottom, right]
            )
    return out


@pytest.mark.parametrize(("shape", "size"), [((5, 7), 13), ((8, 8), 8), ((9, 4), 5), ((1, 3), 6)])
def test_legacy_resize_is_the_loop(shape, size):
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) * 255
    resized = legacy_bilinear(images, size)
    for b in range(2):
        for c in range(3):
            np.testing.assert_allclose(resized[b, c], brute_force(images[b, c].numpy(), size), rtol=0, atol=1e-4)


def test_legacy_resize_has_no_half_pixel_centres():
    """Doubling keeps every source pixel where it is, at even positions; torch's resize does not."""
    images = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(legacy_bilinear(images, 12)[..., ::2, ::2], images)
    assert not torch.allclose(
        nn.functional.interpolate(images, size=(12, 12), mode="bilinear"), legacy_bilinear(images, 12)
    )


def test_units_of_stored_images():
    bytes_ = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal((unit_images(bytes_) * 255).round(), bytes_.float())
    assert unit_images(torch.tensor([[[[-1.0, 0.0, 1.0, 3.0]]]])).flatten().tolist() == [0, 0.5, 1, 1]
    assert unit_images(torch.tensor([[-3.0, 5.0]])).tolist() == [[-3, 5]]


def test_pixels_are_the_leading_principal_components():
    data = jemstone.load_dataset("digits")
    extractor = make_extractor("pixels", data, CPU)
    x = unit_images(data.train.inputs).flatten(1).double().numpy()
    centred = x - x.mean(axis=0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    kept = extractor.function(unit_images(data.train.inputs[:50])).pool.numpy()
    expected = centred[:50] @ axes[: kept.shape[1]].T
    strong = scale[: kept.shape[1]] > 1e-6 * scale[0]  # directions without variance are arbitrary
    np.testing.assert_allclose(np.abs(kept)[:, strong], np.abs(expected)[:, strong], atol=1e-4)
    assert kept.shape == (50, 64)
    assert extractor.name.startswith("pixels-64-")


def test_pixels_are_the_same_twice_and_others_for_other_data():
    data = jemstone.load_dataset("digits")
    names = {make_extractor("pixels", data, CPU).name for _ in range(2)}
    fewer = Dataset(
        "few", Split(data.train.inputs[:500], data.train.labels[:500]), data.test, data.test, data.class_names
    )
    assert len(names | {make_extractor("pixels", fewer, CPU).name}) == 2


def test_pixels_of_vectors_and_of_fewer_dimensions_than_components():
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 1, 1, 1, 1])
    split = Split(x, torch.zeros(30, dtype=torch.long))
    extractor = make_extractor("pixels", Dataset("v", split, split, split, ("a",)), CPU)
    pool = features_of(extractor, x).pool
    assert pool.shape == (30, 5)
    distances = torch.cdist(x.double(), x.double()).numpy()  # a full projection keeps all distances
    np.testing.assert_allclose(torch.cdist(torch.tensor(pool), torch.tensor(pool)).numpy(), distances, atol=1e-3)


def test_pixels_of_large_images_do_not_touch_the_global_state():
    inputs = torch.randint(0, 256, (20, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(inputs, torch.zeros(20, dtype=torch.long))
    data = Dataset("big", split, split, split, ("a",))
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    names = {make_extractor("pixels", data, CPU).name for _ in range(2)}
    assert len(names) == 1
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


class Probe(nn.Module):
    """Stands in for Inception: gives back the size, the channels and the range that it was fed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corner = x[:, :, 0, 0]
        last = x[:, :, -1, -1]
        size = torch.full((x.shape[0], 1), float(x.shape[2] * 1000 + x.shape[1]))
        return torch.cat([corner, last, size], dim=1)[:, :, None, None]


def dataset(inputs):
    split = Split(inputs, torch.zeros(len(inputs), dtype=torch.long))
    return Dataset("some", split, split, split, ("a",))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inception_is_fed_299_pixels_three_channels_and_the_range_of_the_graph(tmp_path):
    file = tmp_path / "network.pt"
    torch.jit.script(Probe()).save(str(file))
    grey = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    grey[1:] = torch.tensor([255, 200], dtype=torch.uint8).view(2, 1, 1, 1)
    extractor = make_extractor(f"inception={file}", dataset(grey), CPU)
    found = features_of(extractor, grey, 2)
    assert found.logits is None
    assert found.pool[:, 6].tolist() == [299_003] * 3
    np.testing.assert_array_equal(found.pool[:, :6], np.tile([[-1.0], [127 / 128], [72 / 128]], (1, 6)))
    assert extractor.name == "inception-" + hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    boxed = features_of(extractor, jemstone.data.to_box(grey))  # floats are rounded to what a file would hold
    np.testing.assert_array_equal(boxed.pool, found.pool)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_that_is_no_network_is_said_to_be_none(tmp_path):
    images = dataset(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    (tmp_path / "broken.pt").write_bytes(b"nothing of the kind")
    for name in ("broken.pt", "missing.pt"):
        with pytest.raises(DataError, match="TorchScript"):
            make_extractor(f"inception={tmp_path / name}", images, CPU)


def test_inception_needs_images():
    for shape in [(4, 5), (4, 2, 8, 8)]:
        with pytest.raises(DataError, match="1 or 3 channels"):
            make_extractor("inception=x", dataset(torch.zeros(shape)), CPU)


@pytest.mark.parametrize("spec", ["", "vgg", "inception", "inception=", "pixels=3"])
def test_an_unknown_extractor_lists_the_choices(spec):
    with pytest.raises(ConfigError, match=r"pixels, inception=FILE.*torch-fidelity"):
        parse_spec(spec)


def stub(monkeypatch, make):
    library = types.ModuleType("torch_fidelity")
    part = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    part.FeatureExtractorInceptionV3 = make
    monkeypatch.setitem(sys.modules, "torch_fidelity", library)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", part)


class Stub(nn.Module):
    """The interface of torch_fidelity.FeatureExtractorInceptionV3 0.4.0: uint8 (b, 3, h, w) in, a tuple out."""

    def __init__(self, name, features_list):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.weight = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return x.flatten(1)[:, :4].float() * self.weight, x.flatten(1)[:, :2].float() / 100


def test_torch_fidelity_is_fed_bytes_and_gives_logits(monkeypatch):
    stub(monkeypatch, Stub)
    images = torch.randint(0, 256, (5, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = make_extractor("torch-fidelity", dataset(images), CPU)
    found = features_of(extractor, jemstone.data.to_box(images), 2)
    np.testing.assert_array_equal(found.pool, images.flatten(1).numpy())
    np.testing.assert_allclose(found.logits, images.flatten(1)[:, :2].numpy() / 100, rtol=1e-6)
    assert extractor.name.startswith("torch-fidelity-")


def test_torch_fidelity_that_is_not_there_or_cannot_download(monkeypatch):
    images = dataset(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(MissingExtra, match="torch-fidelity"):
        make_extractor("torch-fidelity", images, CPU)

    def offline(*_):
        raise OSError("no network")

    stub(monkeypatch, offline)
    with pytest.raises(DataError, match="network connection"):
        make_extractor("torch-fidelity", images, CPU)


def test_a_module_of_ones_own_is_named_by_its_weights():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    first = Extractor.of(module, "mine")
    assert first.name == Extractor.of(module, "mine").name
    images = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = module((images + 1) / 2)
        np.testing.assert_allclose(features_of(first, images, 4).pool, expected, atol=1e-6)
        module[1].bias.add_(1)
    assert first.name != Extractor.of(module, "mine").name
    assert Extractor.of(lambda x: x.flatten(1), "plain").name == "plain"


def test_features_that_are_none_are_refused():
    images = torch.zeros(4, 1, 2, 2)
    for wrong in (lambda x: x.flatten(1) / 0, lambda x: x.flatten(1)[:1]):
        with pytest.raises(DataError, match="finite features"):
            features_of(Extractor.of(wrong, "wrong"), images)
