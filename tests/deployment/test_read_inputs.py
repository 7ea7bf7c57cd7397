"""Whatever a user holds becomes what a model takes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from jemstone.data import load_inputs
from jemstone.deployment.images import image_tensor, read_inputs
from jemstone.errors import DataError

GREY, RGB = (1, 8, 8), (3, 8, 8)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def png(array, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **options)
    return file.getvalue()


def expected(array):
    return torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)[None] * (2 / 255) - 1


def test_every_way_to_hold_an_image_gives_the_same(tmp_path):
    (tmp_path / "a.png").write_bytes(png(PIXELS))
    ways = [
        PIXELS,
        PIXELS[None],
        PIXELS.transpose(2, 0, 1),
        PIXELS.transpose(2, 0, 1)[None],
        torch.from_numpy(PIXELS),
        (PIXELS / 255).astype(np.float32),
        torch.from_numpy(PIXELS / 255),
        Image.fromarray(PIXELS),
        png(PIXELS),
        bytearray(png(PIXELS)),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
    ]
    for way in ways:
        assert torch.allclose(read_inputs(way, RGB), expected(PIXELS), atol=1e-6), type(way)
    many = read_inputs(ways, RGB)
    assert many.shape == (len(ways), *RGB)


def test_three_axes_without_channels_are_grey_images():
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    assert torch.equal(read_inputs(images, GREY), read_inputs(images[:, None], GREY))
    assert read_inputs(images, RGB).shape == (5, *RGB)
    assert read_inputs(images[0], GREY).shape == (1, *GREY)


def test_sizes_and_channels_are_fitted_as_foreign_sets_are(tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (4, 12, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", test_images=images)
    assert torch.equal(read_inputs(list(images), GREY), load_inputs(str(tmp_path / "set.npz"), GREY))


def test_a_photograph_is_turned_as_its_orientation_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    turned = read_inputs(png(PIXELS, exif=exif), RGB)
    assert torch.equal(turned, read_inputs(np.rot90(PIXELS, -1), RGB))


def test_vectors_are_standardised():
    moments = (torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([2.0, 4.0], dtype=torch.float64))
    for way in (np.array([3.0, 6.0]), [3, 6], [[3.0, 6.0]], torch.tensor([[3.0, 6.0]]), np.array([[3, 6]])):
        assert torch.equal(read_inputs(way, (2,), moments), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("inputs", "shape", "says"),
    [
        ([], RGB, "empty"),
        (PIXELS.astype(np.int64), RGB, "int64"),
        (PIXELS.astype(np.float32), RGB, r"\[0, 1\]"),
        (np.full((8, 8), np.nan), GREY, "NaN"),
        (np.zeros((2, 2, 2, 2, 2), np.uint8), RGB, "axes"),
        (np.zeros((2, 8, 8, 2), np.uint8), RGB, "has 2 channels, the model 3"),
        ([PIXELS, b"no image"], RGB, "input 1 cannot be read"),
        (png(PIXELS)[:80], RGB, "cannot be read"),
        ("nowhere.png", RGB, "nowhere.png cannot be read as an image .*No such file"),
        (np.zeros(3), (2,), "vectors of 2 numbers"),
        (png(PIXELS), (2,), "vectors of 2 numbers"),
        (np.array(["a", "b"]), (2,), "vectors of 2 numbers"),
        (np.zeros(2), (2,), "moments"),
    ],
)
def test_what_cannot_be_read_is_named(inputs, shape, says):
    with pytest.raises(DataError, match=says):
        read_inputs(inputs, shape)


def test_a_bomb_is_refused_before_it_is_decoded():
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    with pytest.raises(DataError, match="12000x12000"):
        image_tensor(bomb.getvalue(), RGB, "bomb.png")
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")  # beyond what pillow itself lets through
    with pytest.raises(DataError, match="more pixels than fit"):
        image_tensor(bomb.getvalue(), RGB, "bomb.png")
    with pytest.raises(DataError, match="at most 63"):
        image_tensor(png(PIXELS), RGB, "small.png", max_pixels=63)


def test_a_pil_image_is_read_as_its_file_is():
    tall = Image.fromarray(np.random.default_rng(3).integers(0, 256, (8, 4, 3), dtype=np.uint8))
    exif = tall.getexif()
    exif[0x0112] = 6  # orientation: to be turned by a quarter
    file = io.BytesIO()
    tall.save(file, "PNG", exif=exif)
    opened = Image.open(io.BytesIO(file.getvalue()))
    assert torch.equal(read_inputs(opened, RGB), read_inputs(file.getvalue(), RGB))
    with pytest.raises(DataError, match="the input has the pixel format I;16"):
        read_inputs(Image.fromarray(np.full((8, 8), 40000, np.uint16)), GREY)
