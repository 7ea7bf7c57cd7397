"""Checkpoints: round trip to the bit, atomic, and every damage named."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jemstone import runs
from jemstone.errors import CheckpointError, RunError
from jemstone.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_into,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)


def checkpoint(step: int = 7) -> Checkpoint:
    tensors = {
        "model/weight": torch.randn(3, 4),
        "model/count": torch.tensor(5),
        "buffer/age": torch.arange(6),
        "buffer/x": torch.randn(6, 1, 2, 2).to(memory_format=torch.channels_last),
    }
    return Checkpoint(tensors, {"step": step, "optimizer": {"scalars": {"0/step": 3}, "groups": [{"lr": 0.1}]}})


def test_round_trip_is_bitwise(tmp_path):
    saved = checkpoint()
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved, keep=2))
    assert loaded.step == 7
    assert loaded.header["optimizer"] == saved.header["optimizer"]
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, value in saved.tensors.items():
        assert torch.equal(loaded.tensors[name], value)
        assert loaded.tensors[name].dtype == value.dtype
    assert loaded.part("model").keys() == {"weight", "count"}


def test_tied_weights_are_saved_and_come_back_tied(tmp_path):
    """safetensors refuses tensors that share their memory; the network's own state dict names them twice."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = nn.Linear(3, 3)
            self.decode = nn.Linear(3, 3)
            self.decode.weight = self.encode.weight

    tied = Tied()
    tensors = {f"model/{name}": value for name, value in tied.state_dict().items()}
    tensors["model/part"] = tensors["model/encode.bias"][1:]  # memory within that of another
    path = save_checkpoint(tmp_path, Checkpoint(tensors, {"step": 1}), keep=1)
    loaded = load_checkpoint(path)
    assert all(torch.equal(loaded.tensors[name], value) for name, value in tensors.items())
    again = Tied()
    load_into(again, {name: value for name, value in loaded.part("model").items() if name != "part"}, path)
    assert again.decode.weight is again.encode.weight
    assert torch.equal(again.decode.weight, tied.encode.weight)


def test_only_the_newest_are_kept_and_leftovers_of_a_kill_are_swept(tmp_path):
    (tmp_path / ".step-00000001.safetensors.99.tmp").write_bytes(b"half")
    for step in (5, 20, 100):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-00000020.safetensors",
        "step-00000100.safetensors",
    ]
    assert latest_checkpoint(tmp_path).name == "step-00000100.safetensors"
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, checkpoint(5), keep=2)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        save_checkpoint(tmp_path, checkpoint(6), keep=2)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_truncation_at_any_length_is_named(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(), keep=2)
    content = path.read_bytes()
    for length in (0, 4, 50, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="step-00000007"):
            load_checkpoint(path)


def test_a_flipped_bit_is_found(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(), keep=2)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_any_flipped_bit_of_the_header_is_found(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(), keep=2)
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    for position in range(0, header, 3):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 7)
        path.write_bytes(bytes(flipped))
        with pytest.raises(CheckpointError, match="step-00000007"):
            load_checkpoint(path)


def test_foreign_files_and_other_versions_are_named(tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match="not a checkpoint of jemstone"):
        load_checkpoint(foreign)
    save_file({"a": torch.zeros(1)}, foreign, metadata={"jemstone": '{"version": 99, "step": 1}'})
    with pytest.raises(CheckpointError, match="version 99"):
        load_checkpoint(foreign)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        latest_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="missing"):
        load_checkpoint(tmp_path / "step-00000001.safetensors")


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW])
def test_an_optimiser_restored_continues_bitwise(kind):
    def step(network, optimizer, seed):
        optimizer.zero_grad()
        network(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()

    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    network = nn.Linear(3, 2)
    optimizer = kind(network.parameters(), lr=0.01, **settings)
    step(network, optimizer, 0)
    tensors, rest = pack_optimizer(optimizer)
    tensors = {name: value.clone() for name, value in tensors.items()}
    twin = nn.Linear(3, 2)
    twin.load_state_dict(network.state_dict())
    restored = kind(twin.parameters(), lr=0.5, **settings)
    unpack_optimizer(restored, tensors, rest)
    step(network, optimizer, 1)
    step(twin, restored, 1)
    assert torch.equal(network.weight, twin.weight)


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(CheckpointError, match="does not fit this network"):
        load_into(nn.Linear(2, 2), {"weight": torch.zeros(3, 3)}, "file")
