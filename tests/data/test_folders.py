import numpy as np
import pytest
import torch
from PIL import Image

from jemstone.data import load_dataset, load_inputs, to_box
from jemstone.errors import DataError


def picture(value, mode="RGB", size=(5, 4)):
    """A picture that differs from place to place, from channel to channel and from value to value."""
    pixels = np.arange(size[1] * size[0] * 3, dtype=np.uint8).reshape(size[1], size[0], 3) + np.uint8(value)
    return Image.fromarray(pixels).convert(mode)


def write(root, classes=("cat", "dog"), count=5, **options):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(40 * number + i, **options).save(root / name / f"{i:03}.png")


def first_pixels(split):
    return sorted(int(image[0, 0, 0]) for image in split.inputs)


def test_train_and_test_folders(tmp_path):
    write(tmp_path / "set" / "train")
    write(tmp_path / "set" / "test", count=2)
    data = load_dataset(str(tmp_path / "set"), validation=0.2)
    assert (data.name, data.class_names, data.input_shape) == ("set", ("cat", "dog"), (3, 4, 5))
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 4)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    expected = np.stack([np.asarray(picture(value)) for value in (0, 1, 40, 41)])
    assert data.test.inputs.equal(torch.from_numpy(expected).permute(0, 3, 1, 2))
    assert first_pixels(data.train) != first_pixels(data.validation)
    assert sorted(first_pixels(data.train) + first_pixels(data.validation)) == [*range(5), *range(40, 45)]
    assert load_inputs(str(tmp_path / "set"), (3, 4, 5)).equal(to_box(data.test.inputs))


def test_class_folders_only_hold_out_a_fifth(tmp_path):
    write(tmp_path, count=13)
    data, other = (load_dataset(str(tmp_path), validation=0.0, seed=seed) for seed in (0, 1))
    assert (len(data.train), len(data.test)) == (20, 6)
    assert data.test.labels.bincount().tolist() == [3, 3]
    assert sorted(first_pixels(data.train) + first_pixels(data.test)) == [*range(13), *range(40, 53)]
    assert data.test.inputs.equal(other.test.inputs)
    assert load_inputs(str(tmp_path), (3, 4, 5)).equal(to_box(data.test.inputs))


def test_train_folder_alone_holds_out_a_fifth(tmp_path):
    write(tmp_path / "train")
    assert len(load_dataset(str(tmp_path), validation=0.0).test) == 2


def test_validation_folder_serves_as_test(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "val", count=3)
    assert len(load_dataset(str(tmp_path), validation=0.0).test) == 6


def test_too_few_for_a_test_split(tmp_path):
    write(tmp_path, classes=("a", "b", "c"), count=1)
    with pytest.raises(DataError, match="too few examples for a test split of 20 %"):
        load_dataset(str(tmp_path))


def test_grey_stays_grey_and_one_colour_image_makes_all_rgb(tmp_path):
    write(tmp_path / "grey", mode="L")
    grey = load_dataset(str(tmp_path / "grey"), validation=0.0)
    assert grey.input_shape == (1, 4, 5)
    picture(99).save(tmp_path / "grey" / "cat" / "999.png")
    mixed = load_dataset(str(tmp_path / "grey"), validation=0.0)
    assert mixed.input_shape == (3, 4, 5)
    everything = torch.cat([mixed.train.inputs, mixed.test.inputs])
    is_grey = (everything == everything[:, :1]).flatten(1).all(1)
    assert is_grey.sum() == 10


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("RGBA", 3), ("P", 3)])
def test_pixel_formats(tmp_path, mode, channels):
    write(tmp_path, mode=mode)
    data = load_dataset(str(tmp_path), validation=0.0)
    assert data.input_shape == (channels, 4, 5)
    if mode == "RGBA":
        assert first_pixels(data.train)[0] in (0, 1)


def test_jpeg_and_other_files(tmp_path):
    write(tmp_path)
    picture(7).save(tmp_path / "cat" / "photo.JPG", format="JPEG")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / ".hidden.png").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    data = load_dataset(str(tmp_path), validation=0.0)
    assert len(data.train) + len(data.test) == 11


def test_flat_folder_for_inputs(tmp_path):
    (tmp_path / "ood" / "test").mkdir(parents=True)
    for i in range(3):
        picture(i).save(tmp_path / "ood" / "test" / f"{i}.png")
    nested = load_inputs(str(tmp_path / "ood"), (3, 4, 5))
    flat = load_inputs(str(tmp_path / "ood" / "test"), (3, 4, 5))
    assert len(nested) == 3
    assert nested.equal(flat)


def test_class_folders_in_test_alone_for_inputs(tmp_path):
    write(tmp_path / "test")
    assert len(load_inputs(str(tmp_path), (3, 4, 5))) == 10
    with pytest.raises(DataError, match="has a folder test and no folder train"):
        load_dataset(str(tmp_path))


def test_sizes_that_differ(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "test", size=(6, 4))
    with pytest.raises(DataError, match=r"cat/000\.png is 5x4 and .*test/cat/000\.png is 6x4 .*Resize"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not an image", b"truncated", b"damaged"])
def test_unreadable_image(tmp_path, content):
    write(tmp_path, size=(64, 64))
    file = tmp_path / "dog" / "002.png"
    whole = file.read_bytes()
    if content == b"truncated":
        content = whole[: len(whole) // 2]
    elif content == b"damaged":
        content = whole.replace(b"IHDR", b"IHDX")
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"dog/002\.png cannot be read as an image.*Replace"):
        load_dataset(str(tmp_path))


def test_more_than_8_bits(tmp_path):
    write(tmp_path)
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(tmp_path / "dog" / "002.png")
    with pytest.raises(DataError, match=r"dog/002\.png has the pixel format I;16\. Convert it to 8 bits"):
        load_dataset(str(tmp_path))


def test_empty_class_folder(tmp_path):
    write(tmp_path)
    (tmp_path / "eel").mkdir()
    with pytest.raises(DataError, match=r"eel holds no images .*class 'eel' would be empty.*remove the folder"):
        load_dataset(str(tmp_path))


def test_no_class_folders(tmp_path):
    picture(0).save(tmp_path / "0.png")
    with pytest.raises(DataError, match="holds no class folders"):
        load_dataset(str(tmp_path))


def test_test_class_that_training_lacks(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "test", classes=("cat", "eel"))
    with pytest.raises(DataError, match=r"test/eel is a class that .*train does not have \(cat, dog\)"):
        load_dataset(str(tmp_path))


def test_test_folder_without_images(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "test", count=0)
    with pytest.raises(DataError, match="test is empty"):
        load_dataset(str(tmp_path))
    with pytest.raises(DataError, match="test is empty"):
        load_inputs(str(tmp_path), (3, 4, 5))
