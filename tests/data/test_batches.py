import math

import pytest
import torch
from torch.nn import functional as F

from jemstone.data import UNLABELLED, Augment, Split, Stream, augment, labelled, to_box
from jemstone.errors import ConfigError, DataError
from jemstone.rng import generator

PLAIN = Augment()


def split_of(n, shape=(1, 4, 4)):
    """Example i is filled with the number i and has the label i."""
    inputs = torch.arange(n, dtype=torch.float32).reshape(n, *[1] * len(shape)).expand(n, *shape).contiguous()
    return Split(inputs, torch.arange(n))


def stream(n=10, batch_size=4, settings=PLAIN, **options):
    return Stream(split_of(n), batch_size, settings, **{"seed": 0, "name": "t", **options})


@pytest.mark.parametrize("n", [1, 7, 10])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 25])
@pytest.mark.parametrize("world_size", [1, 3])
def test_every_example_once_an_epoch(n, batch_size, world_size):
    ranks = [stream(n, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    steps = math.ceil(3 * ranks[0].steps_per_epoch)
    drawn = torch.cat([ranks[rank](step).y for step in range(steps) for rank in range(world_size)])
    for epoch in range(3):
        assert sorted(drawn[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_inputs_belong_to_labels():
    source = stream()
    for step in range(8):
        x, y = source(step)
        assert x.shape == (4, 1, 4, 4)
        assert x.equal(y.float()[:, None, None, None].expand(-1, 1, 4, 4))


def test_epochs_seeds_and_names_have_different_orders():
    n = 50
    orders = [stream(n, n)(0).y, stream(n, n)(1).y, stream(n, n, seed=1)(0).y, stream(n, n, name="other")(0).y]
    for i in range(4):
        for j in range(i):
            assert (orders[i] != orders[j]).any()


def test_order_is_uniform():
    # How often each of 5 examples comes first in 2,000 epochs.
    source = stream(5, 5)
    counts = torch.stack([source(epoch).y[0] for epoch in range(2000)]).bincount(minlength=5)
    chi2 = float(((counts - 400) ** 2 / 400).sum())
    assert chi2 < 4 + 4 * math.sqrt(8)


FULL = Augment(crop_padding=2, flip=True, noise=0.1)


def test_a_batch_is_a_function_of_the_step_alone():
    steps = list(range(9))
    source = stream(settings=FULL)
    forward = [source(step) for step in steps]
    backward = [source(step) for step in reversed(steps)][::-1]
    resumed = [stream(settings=FULL)(step) for step in steps]
    for first, second, third in zip(forward, backward, resumed, strict=True):
        assert first.x.equal(second.x)
        assert first.x.equal(third.x)
        assert first.y.equal(second.y)
        assert first.y.equal(third.y)


def test_the_same_batch_after_global_draws():
    expected = stream(settings=FULL)(3).x
    torch.manual_seed(1)
    assert stream(settings=FULL)(3).x.equal(expected)
    state = torch.get_rng_state()
    stream(settings=FULL)(3)
    assert torch.get_rng_state().equal(state)


def test_augmentation_differs_between_steps_and_ranks():
    n = 6
    noises = []
    for step, rank in ((0, 0), (1, 0), (0, 1)):
        x, y = stream(n, n, Augment(noise=1.0), rank=rank, world_size=2)(step)
        noises.append(x - y[:, None, None, None])
    for i in range(3):
        for j in range(i):
            assert (noises[i] - noises[j]).abs().max() > 0.1


def test_ranks_continue_one_order():
    whole = stream(11, 6)
    parts = [stream(11, 2, rank=rank, world_size=3) for rank in range(3)]
    for step in range(7):
        assert torch.cat([part(step).y for part in parts]).equal(whole(step).y)


def test_only_the_epochs_in_use_are_kept():
    source = stream(10, 4)
    for step in range(40):
        source(step)
        assert len(source._orders) <= 2


def test_bytes_and_floats_give_the_same_batches():
    stored = torch.randint(0, 256, (20, 3, 6, 6), dtype=torch.uint8, generator=generator(0, "t"))
    labels = torch.arange(20)
    streams = [Stream(Split(x, labels), 8, FULL, seed=0, name="t") for x in (stored, to_box(stored))]
    assert streams[0].split.inputs.dtype == torch.uint8
    for step in range(4):
        first, second = streams[0](step), streams[1](step)
        assert first.x.dtype == torch.float32
        assert first.x.equal(second.x)


def test_batches_do_not_touch_the_split():
    split = split_of(10)
    before = split.inputs.clone()
    source = Stream(split, 10, PLAIN, seed=0, name="t")
    source(0).x.zero_()
    Stream(split, 10, Augment(noise=1.0), seed=0, name="t")(0)
    assert split.inputs.equal(before)


def test_labelled():
    split = Split(torch.arange(4.0)[:, None], torch.tensor([0, UNLABELLED, 1, UNLABELLED]))
    assert labelled(split).labels.tolist() == [0, 1]
    assert labelled(split).inputs.flatten().tolist() == [0, 2]
    assert labelled(labelled(split)).labels.tolist() == [0, 1]
    full = split_of(3)
    assert labelled(full) is full


def test_unlabelled_examples_are_in_a_stream_over_all():
    split = Split(torch.zeros(4, 2), torch.tensor([0, UNLABELLED, 1, UNLABELLED]))
    assert sorted(Stream(split, 4, PLAIN, seed=0, name="t")(0).y.tolist()) == [-1, -1, 0, 1]


def test_crop_equals_a_slow_reference():
    b, p = 64, 3
    x = torch.randn(b, 2, 5, 7, generator=generator(0, "x"))
    out = augment(x, Augment(crop_padding=p), generator(0, "t"))
    padded = F.pad(x, (p, p, p, p), mode="reflect")
    found = []
    for i in range(b):
        places = [
            (top, left)
            for top in range(2 * p + 1)
            for left in range(2 * p + 1)
            if padded[i, :, top : top + 5, left : left + 7].equal(out[i])
        ]
        assert len(places) == 1
        found += places
    tops, lefts = zip(*found, strict=True)
    assert set(tops) == set(lefts) == set(range(2 * p + 1))
    assert len(set(found)) > 2 * p + 1  # rows and columns move independently


def test_crop_offsets_are_uniform():
    n, p = 7000, 1
    x = torch.arange(3.0).expand(n, 1, 3, 3)  # the middle column tells the offset
    middle = augment(x, Augment(crop_padding=p), generator(0, "t"))[:, 0, 1, 1].long()
    # Offsets -1, 0, 1 show 0, 1, 2.
    chi2 = float(((middle.bincount(minlength=3) - n / 3) ** 2 / (n / 3)).sum())
    assert chi2 < 2 + 4 * math.sqrt(4)


def test_flip_is_horizontal_and_fair():
    n = 4000
    x = torch.arange(12.0).reshape(1, 1, 3, 4).expand(n, 1, 3, 4)
    out = augment(x, Augment(flip=True), generator(0, "t"))
    same, mirrored = ((out == other).flatten(1).all(1) for other in (x, x.flip(3)))
    assert (same ^ mirrored).all()
    z = (int(mirrored.sum()) - n / 2) / math.sqrt(n / 4)
    assert abs(z) < 4


def test_crop_and_flip_are_a_crop_then_a_flip():
    x = torch.randn(200, 1, 4, 4, generator=generator(0, "x"))
    cropped = augment(x, Augment(crop_padding=1), generator(0, "t"))
    both = augment(x, Augment(crop_padding=1, flip=True), generator(0, "t"))
    same, mirrored = ((both == other).flatten(1).all(1) for other in (cropped, cropped.flip(3)))
    assert (same | mirrored).all()
    assert 60 < mirrored.sum() < 140


@pytest.mark.parametrize("shape", [(400, 3, 8, 8), (400, 192)])
def test_noise_has_the_stated_deviation_and_is_not_clamped(shape):
    x = torch.ones(shape)
    noise = (augment(x, Augment(noise=0.3), generator(0, "t")) - x).double()
    n = noise.numel()
    assert abs(noise.mean()) < 4 * 0.3 / math.sqrt(n)
    assert abs(noise.std() / 0.3 - 1) < 4 / math.sqrt(2 * n)
    assert (noise > 0).any()


def test_no_augmentation_is_no_change():
    x = torch.randn(3, 1, 4, 4)
    assert augment(x, PLAIN, generator(0, "t")).equal(x)


def test_augment_leaves_its_input_alone():
    x = torch.randn(5, 1, 4, 4)
    before = x.clone()
    augment(x, FULL, generator(0, "t"))
    assert x.equal(before)


def test_padding_larger_than_the_image():
    with pytest.raises(ConfigError, match=r"crop_padding is 4.*4x6.*Use at most 3"):
        augment(torch.zeros(1, 1, 4, 6), Augment(crop_padding=4), generator(0, "t"))
    with pytest.raises(ConfigError, match="crop_padding is 4"):
        stream(settings=Augment(crop_padding=4))
    assert augment(torch.zeros(1, 1, 4, 6), Augment(crop_padding=3), generator(0, "t")).shape == (1, 1, 4, 6)


@pytest.mark.parametrize("settings", [Augment(crop_padding=1), Augment(flip=True)])
def test_vectors_take_noise_only(settings):
    with pytest.raises(ConfigError, match=r"for images .*shape \(3,\)"):
        augment(torch.zeros(2, 3), settings, generator(0, "t"))


@pytest.mark.parametrize("wrong", [{"crop_padding": -1}, {"noise": -0.1}, {"noise": float("nan")}])
def test_augment_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        Augment(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 1}, "rank is 1 with world_size 1"),
        ({"rank": -1}, "rank is -1"),
    ],
)
def test_stream_out_of_range(wrong, message):
    with pytest.raises(ConfigError, match=message):
        stream(**wrong)


def test_stream_over_nothing():
    with pytest.raises(DataError, match="no examples to draw from"):
        stream(n=0)


def test_negative_step():
    with pytest.raises(ConfigError, match="step is -1"):
        stream()(-1)


def test_steps_per_epoch():
    assert stream(10, 4).steps_per_epoch == 2.5
    assert stream(10, 2, world_size=5).steps_per_epoch == 1.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_the_same_batches():
    for settings in (PLAIN, FULL):
        expected, found = stream(settings=settings)(3), stream(settings=settings, device="cuda")(3)
        assert found.x.is_cuda
        torch.testing.assert_close(found.x.cpu(), expected.x)
        assert found.y.cpu().equal(expected.y)
