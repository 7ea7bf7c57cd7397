"""Corruptions against what defines them: closed forms, pillow, the colour model of the standard library."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image

from jemstone.data.dataset import to_box
from jemstone.errors import ConfigError, DataError
from jemstone.evaluation.corruption_kinds import STRENGTHS, corrupt

ALL = [(kind, severity) for kind in STRENGTHS for severity in (1, 2, 3, 4, 5)]


def pictures(n=12, channels=3):
    """Smooth patterns with an edge, stored."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] / 32
    a, b, c = rng.uniform(1, 9, size=(3, n, channels, 1, 1))
    waves = 0.5 + 0.25 * np.sin(a * x + b) * np.cos(c * y) + 0.2 * (x + y > b / 6)
    return torch.tensor(255 * waves).round().to(torch.uint8)


def unit(x):
    return (to_box(x) + 1) / 2


@pytest.mark.parametrize(("kind", "severity"), ALL)
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 9), (1, 28, 28)])
def test_any_image_stays_an_image(kind, severity, shape):
    images = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = corrupt(images, kind, severity)
    assert (out.shape, out.dtype) == (images.shape, torch.float32)
    assert out.min() >= -1
    assert out.max() <= 1
    assert torch.equal(out, corrupt(images, kind, severity))
    assert torch.allclose(out, corrupt(to_box(images), kind, severity), atol=1e-6)


@pytest.mark.parametrize("kind", list(STRENGTHS))
@pytest.mark.parametrize("channels", [1, 3])
def test_damage_grows_with_severity(kind, channels):
    images = pictures(channels=channels)
    damage = [float((corrupt(images, kind, s) - to_box(images)).square().mean()) for s in (1, 2, 3, 4, 5)]
    assert damage[0] > 0
    assert damage == sorted(damage)
    assert len(set(damage)) == 5


def test_noise_has_its_standard_deviation_and_a_stream_per_seed_and_severity():
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    draws = [unit(corrupt(grey, "noise", s)) - 128 / 255 for s in (1, 2, 3, 4, 5)]
    n = grey.numel()
    for draw, deviation in zip(draws, STRENGTHS["noise"], strict=True):
        assert abs(float(draw.std()) / deviation - 1) < 4 / np.sqrt(2 * n)
        assert abs(float(draw.mean())) < 4 * deviation / np.sqrt(n)
    correlation = float(torch.corrcoef(torch.stack([draws[0].flatten(), draws[1].flatten()]))[0, 1])
    assert abs(correlation) < 4 / np.sqrt(n)
    assert not torch.equal(corrupt(grey, "noise", 1, seed=1), corrupt(grey, "noise", 1, seed=0))


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_blur_is_a_gaussian_of_its_width(severity):
    """A point of light spreads to a variance of sigma^2 in both directions; flat images stay."""
    point = torch.full((1, 1, 33, 33), -1.0)
    point[..., 16, 16] = 1
    spread = unit(corrupt(point, "blur", severity))[0, 0].double()
    at = torch.arange(33).double() - 16
    sigma = STRENGTHS["blur"][severity - 1]
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    assert torch.allclose(spread, kernel[:, None] * kernel, atol=1e-4)
    flat = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
    assert torch.allclose(corrupt(flat, "blur", severity), to_box(flat), atol=1e-6)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_contrast_is_a_factor_about_the_mean_of_each_channel(severity):
    x = unit(pictures())
    out = unit(corrupt(pictures(), "contrast", severity))
    assert torch.allclose(out.mean(dim=(2, 3)), x.mean(dim=(2, 3)), atol=1e-5)
    factor = STRENGTHS["contrast"][severity - 1]
    assert torch.allclose(out.std(dim=(2, 3)), factor * x.std(dim=(2, 3)), atol=1e-5)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_brightness_shifts_grey_images_and_clips(severity):
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    shifted = (unit(images) + STRENGTHS["brightness"][severity - 1]).clamp(max=1)
    assert torch.allclose(unit(corrupt(images, "brightness", severity)), shifted, atol=1e-6)


def test_brightness_of_colours_is_the_value_of_hsv():
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[..., 0, 0] = 0
    out = unit(corrupt(images, "brightness", 5))[0].permute(1, 2, 0).reshape(-1, 3)
    for before, after in zip(unit(images)[0].permute(1, 2, 0).reshape(-1, 3).tolist(), out.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1)), abs=1e-5)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_pixelation_is_a_box_filter_down_and_up_again(severity):
    """As published, through pillow, up to its rounding to 8 bits (twice)."""
    images = pictures(n=2)
    size = int(STRENGTHS["pixelation"][severity - 1] * 32)
    for image, out in zip(images, corrupt(images, "pixelation", severity), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        small = picture.resize((size, size), Image.Resampling.BOX)
        shown = torch.tensor(np.asarray(small.resize((32, 32), Image.Resampling.BOX))).permute(2, 0, 1)
        assert (unit(out) - unit(shown)).abs().max() < 1.5 / 255


@pytest.mark.parametrize(
    ("severity", "height", "width", "h", "w"), [(1, 32, 32, 30, 30), (5, 32, 20, 20, 13), (5, 4, 4, 2, 2)]
)
def test_pixelation_is_constant_within_blocks_and_keeps_their_means(severity, height, width, h, w):
    shape = (1, 1, height, width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x, out = unit(images)[0, 0], unit(corrupt(images, "pixelation", severity))[0, 0]
    rows = np.array_split(np.arange(height), np.flatnonzero((out[1:] - out[:-1]).abs().amax(dim=1) > 1e-5) + 1)
    columns = np.array_split(np.arange(width), np.flatnonzero((out[:, 1:] - out[:, :-1]).abs().amax(dim=0) > 1e-5) + 1)
    assert (len(rows), len(columns)) == (h, w)
    for block in (np.ix_(r, c) for r in rows for c in columns):
        assert torch.allclose(out[block], x[block].mean(), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_a_round_trip_through_pillow(channels):
    images = pictures(n=2, channels=channels)
    out = corrupt(images, "jpeg", 2)
    for image, corrupted in zip(images, out, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(file, "JPEG", quality=65)
        back = np.asarray(Image.open(file)).reshape(32, 32, channels)
        assert torch.allclose(corrupted, to_box(torch.tensor(back)).permute(2, 0, 1), atol=1e-6)


def test_unknown_corruptions_are_refused():
    for kind, severity in [("fog", 1), ("noise", 0), ("noise", 6)]:
        with pytest.raises(ConfigError, match=kind):
            corrupt(pictures(1), kind, severity)
    with pytest.raises(DataError, match="images"):
        corrupt(torch.zeros(4, 3), "noise", 1)
    with pytest.raises(DataError, match="three channels"):
        corrupt(pictures(1, channels=2), "jpeg", 1)
