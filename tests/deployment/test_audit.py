"""The audit against brute force, formulas and planted faults."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from torch import nn

import jemstone.deployment.audit as module
from jemstone import EnergyClassifier, Split, generator, recipe
from jemstone.cli import main
from jemstone.deployment.audit import Audit, audit, margins, nearest
from jemstone.deployment.contact_sheet import contact_sheet
from jemstone.errors import ConfigError, DataError
from jemstone.runs import Run
from jemstone.training.trained import Trained


class Nearest(nn.Module):
    """Logits -|x - m_y|^2 / 2 of three means on the axes: what belongs where, and how well, is known."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.eye(3).repeat(1, 3)[:, :9] * 1.6 - 0.8)

    def forward(self, x):
        return -(x.flatten(1)[:, None] - self.means).square().sum(dim=2) * 4


NAMES = ("a", "b", "c")


@pytest.fixture
def trained(tmp_path):
    model = EnergyClassifier(Nearest()).eval()
    return Trained(Run.create(tmp_path / "run", {}), recipe("jem-small"), model, (1, 3, 3), NAMES, 0, None, 10)


@pytest.fixture
def split(trained):
    """90 images near the means; 4 is labelled wrongly, 7 lies far off, 11 repeats 8 but for a trifle, 20 is bare."""
    labels = torch.arange(90) % 3
    means = trained.model.network.means.detach()
    x = means[labels].view(90, 1, 3, 3) + 0.1 * torch.randn(90, 1, 3, 3, generator=generator(1, "x"))
    x[7] = 0.9
    x[11] = x[8] + 0.001
    labels[4] = (labels[4] + 1) % 3
    labels[20] = -1
    return Split(x.clamp(-1, 1), labels)


def test_planted_faults_are_found_and_nothing_else(trained, split):
    found = audit(trained, split)
    flagged = {name: flags.nonzero().flatten().tolist() for name, flags in found.reasons().items()}
    assert flagged == {"mislabelled": [4], "outlier": [7], "near-duplicate": [8, 11]}
    assert found.order()[:4].sort().values.tolist() == [4, 7, 8, 11]
    assert found.suggested[4] == 4 % 3
    assert found.neighbour[11] == 8


def test_scores_against_their_formulas(trained, split):
    found = audit(trained, split)
    log_p = trained.model(split.inputs).detach().double().log_softmax(dim=1)
    for row in (0, 4, 7, 50):
        given = split.labels[row]
        other = max(log_p[row, y] for y in range(3) if y != given)
        assert found.margin[row] == pytest.approx(float(other - log_p[row, given]), abs=1e-4)
    assert torch.allclose(found.energy, -trained.log_density(split.inputs))
    assert found.margin[20] == -torch.inf
    assert not found.reasons()["mislabelled"][20]


def test_margins_of_a_table():
    logits = torch.tensor([[2.0, 0.5, 1.0], [2.0, 0.5, 1.0], [2.0, 0.5, 1.0]])
    assert margins(logits, torch.tensor([0, 1, -1])).tolist() == [-1.0, 1.5, -torch.inf]


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_nearest_neighbours_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    images = torch.randint(0, 256, (64, 1, 4, 4), generator=generator(1, "bytes"), dtype=torch.uint8)
    images[40] = images[13]
    distance, neighbour = nearest(images)
    flat = images.flatten(1).double().numpy() * 2 / 255
    expected, _ = NearestNeighbors(n_neighbors=2).fit(flat).kneighbors()
    assert np.allclose(distance, expected[:, 0], atol=1e-5)
    apart = np.linalg.norm(flat - flat[neighbour], axis=1)
    assert np.allclose(apart, distance, atol=1e-5)
    assert (neighbour != torch.arange(64)).all()
    assert (distance[40], distance[13], neighbour[40], neighbour[13]) == (0, 0, 13, 40)


def test_small_distances_are_not_rounded_away():
    images = torch.rand(3, 1, 28, 28, generator=generator(2, "x"))
    images[2] = images[0]
    images[2, 0, 5, 5] += 1e-3  # squared norms of some 270 in float32 are sums with errors of 1e-5
    distance, neighbour = nearest(images)
    assert distance[0].item() == pytest.approx(1e-3, rel=1e-3)
    assert (neighbour[0], neighbour[2]) == (2, 0)


def test_the_table_has_a_line_per_example(trained, split):
    found = audit(trained, split)
    rows = list(csv.DictReader(io.StringIO(found.as_csv(NAMES))))
    assert sorted(int(row["index"]) for row in rows) == list(range(90))
    by_index = {int(row["index"]): row for row in rows}
    assert (by_index[4]["given"], by_index[4]["suggested"], by_index[4]["reasons"]) == ("c", "b", "mislabelled")
    assert (by_index[11]["neighbour"], by_index[11]["reasons"]) == ("8", "near-duplicate")
    assert by_index[20]["given"] == ""
    assert {row["index"] for row in rows[:4]} == {"4", "7", "8", "11"}


def test_the_sheet_frames_what_is_flagged(trained, split):
    found = audit(trained, split)
    sheet = np.asarray(contact_sheet(found, split.inputs, NAMES, top=8))
    red = (sheet == [0xC0, 0x39, 0x2B]).all(axis=2)
    # An image's frame is 108 wide and two thick: one of each kind, the pair's twice as wide, since a pair comes once.
    assert red.sum() == 2 * (108**2 - 104**2) + (212 * 108 - 208 * 104)
    assert sheet.shape[1] == 8 * 112 + 8
    colour = Split(split.inputs.expand(-1, 3, -1, -1), split.labels)
    assert contact_sheet(found, colour.inputs, ("a long name of a class" * 3, "b", "c"), top=500).mode == "RGB"
    with pytest.raises(ConfigError, match="at least 1"):
        contact_sheet(found, split.inputs, NAMES, top=0)


def test_what_cannot_be_audited_is_said(trained, split):
    with pytest.raises(DataError, match="compares examples"):
        audit(trained, Split(split.inputs[:1], split.labels[:1]))
    with pytest.raises(DataError, match="none of the 3 classes"):
        audit(trained, Split(split.inputs, split.labels + 1))
    with pytest.raises(DataError, match="are of shape"):
        audit(replace(trained, input_shape=(1, 4, 4)), split)


def test_no_fault_no_flag():
    scores = torch.linspace(0, 1, 50)
    labels = torch.zeros(50, dtype=torch.int64)
    found = Audit(labels, labels, scores - 2, scores, scores + 1, labels)
    assert not torch.stack(list(found.reasons().values())).any()
    assert found.order().tolist()[0] in (0, 49)


def test_the_command_writes_table_and_picture(tmp_path, capsys):
    run, out = str(tmp_path / "run"), tmp_path / "new" / "audit"
    small = ["--network", "conv-4", "--steps", "3", "--batch_size", "8", "--data", "digits"]
    assert main(["train", "classifier-small", *small, "--run", run]) == 0
    assert main(["audit", run, "digits", "--out", str(out), "--top", "8"]) == 0
    assert len((out / "audit.csv").read_text().splitlines()) == 1 + 1797, "also those that training holds out"
    with Image.open(out / "audit.png") as picture:
        assert picture.size[0] == 904
    assert "near-duplicate" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "audit.csv").open()))
    assert all(row["given"] == str(load_digits().target[int(row["index"])]) for row in rows)
    images = np.zeros((40, 8, 8), np.uint8)
    np.savez(
        tmp_path / "two.npz",
        train_images=images,
        train_labels=np.arange(40) % 2,
        test_images=images,
        test_labels=np.arange(40) % 2,
    )
    assert main(["audit", run, str(tmp_path / "two.npz"), "--out", str(out)]) == 1
    assert "labels mean the same only where" in capsys.readouterr().err
    assert main(["audit", run, "digits", "--out", str(out), "--top", "0"]) == 1
