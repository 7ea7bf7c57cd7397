"""Which training examples deserve a second look: wrong labels, outliers, near-duplicates."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jemstone.data import UNLABELLED, Split, to_box
from jemstone.energy import marginal_energy
from jemstone.errors import DataError
from jemstone.training.trained import Trained

ODDS = 3.0
"""A label is doubted where another class is so many times as probable."""
FAR_OUT = 3.0
"""An outlier has E(x) above the third quartile by so many interquartile ranges (Tukey 1977: far out)."""
NEAR = 0.2
"""Two inputs are near-duplicates within this share of the median distance from an input to its nearest neighbour."""
BLOCK = 1024
"""Inputs that are compared at a time: memory is of the order of BLOCK^2 distances, whatever their number."""


@dataclass(frozen=True)
class Audit:
    """Three scores per example, each higher for more suspicion, and what the thresholds above say of them.

    Attributes:
        given: the labels, -1 where there is none.
        suggested: the class that the model finds most probable.
        margin: `margins`, nats; -inf without a label.
        energy: E(x), nats, up to a constant: high where the model's density is low.
        distance: L2 in model units to the nearest other example, in pixels as they are: a shifted copy is far.
        neighbour: which one that is.
    """

    given: Int[Tensor, " n"]
    suggested: Int[Tensor, " n"]
    margin: Float[Tensor, " n"]
    energy: Float[Tensor, " n"]
    distance: Float[Tensor, " n"]
    neighbour: Int[Tensor, " n"]

    def reasons(self) -> dict[str, Tensor]:
        """Who is flagged, (n,) bool for each of `mislabelled`, `outlier` and `near-duplicate`."""
        low, high = torch.quantile(self.energy, torch.tensor([0.25, 0.75])).tolist()
        return {
            "mislabelled": self.margin > torch.tensor(ODDS).log(),
            "outlier": self.energy > high + FAR_OUT * (high - low),
            "near-duplicate": self.distance <= NEAR * self.distance.median(),
        }

    def orders(self) -> dict[str, Tensor]:
        """All examples, the most suspicious first, (n,) for each reason."""
        scores = {"mislabelled": -self.margin, "outlier": -self.energy, "near-duplicate": self.distance}
        return {name: score.argsort(stable=True) for name, score in scores.items()}

    def order(self) -> Tensor:
        """All examples by the best of their three places, the flagged before all others, (n,)."""
        places = torch.stack([order.argsort() for order in self.orders().values()])
        flagged = torch.stack(list(self.reasons().values()))
        best = places.masked_fill(~flagged, len(self.given)).amin(dim=0) * len(self.given) + places.amin(dim=0)
        return best.argsort(stable=True)

    def as_csv(self, class_names: tuple[str, ...]) -> str:
        """One line per example in `order`; `index` counts the examples as they were given, from 0."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["index", "given", "suggested", "margin", "energy", "distance", "neighbour", "reasons"])
        reasons = {name: flags.tolist() for name, flags in self.reasons().items()}
        for row in self.order().tolist():
            given = int(self.given[row])
            writer.writerow(
                [
                    row,
                    "" if given == UNLABELLED else class_names[given],
                    class_names[int(self.suggested[row])],
                    *(f"{float(score[row]):.4g}" for score in (self.margin, self.energy, self.distance)),
                    int(self.neighbour[row]),
                    " ".join(name for name, flags in reasons.items() if flags[row]),
                ]
            )
        return file.getvalue()


def audit(trained: Trained, split: Split) -> Audit:
    """Scores of a split's examples by a model, which may or may not have been trained on them.

    One that was has learnt part of the wrong labels, too, the more so the longer it was trained without input noise.
    Raises DataError for fewer than two examples and for labels that the model has no class for.
    """
    classes = len(trained.class_names)
    if len(split) < 2:
        raise DataError(f"An audit compares examples with each other, and there is {len(split)}.")
    if tuple(split.inputs.shape[1:]) != trained.input_shape:
        raise DataError(
            f"The inputs are of shape {tuple(split.inputs.shape[1:])}, and {trained.run.path} takes "
            f"{trained.input_shape}: audit the data that it was trained on, or data like it."
        )
    if int(split.labels.max()) >= classes:
        raise DataError(f"Label {int(split.labels.max())} is none of the {classes} classes of {trained.run.path}.")
    logits = trained.logits(split.inputs)
    labels = split.labels.cpu()
    distance, neighbour = nearest(split.inputs.to(trained.device))
    return Audit(labels, logits.argmax(dim=1), margins(logits, labels), marginal_energy(logits), distance, neighbour)


def margins(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """E(x, y) - min E(x, y') over the other classes y': how much more likely another class is than the given one.

    That is log p(y'|x) - log p(y|x), in nats: positive where the model disagrees. No temperature changes the order.
    -inf where the label is -1.
    """
    own = labels.clamp(min=0)[:, None]
    given = logits.gather(1, own).squeeze(1)
    other = logits.scatter(1, own, -torch.inf).amax(dim=1)
    return (other - given).masked_fill(labels == UNLABELLED, -torch.inf)


def nearest(inputs: Tensor) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """(L2 distance, index) of each input's nearest other one, model units; on the CPU. Time grows as n^2 d."""
    n = len(inputs)
    distance, neighbour = torch.empty(n), torch.empty(n, dtype=torch.int64)
    for begin in range(0, n, BLOCK):
        rows = to_box(inputs[begin : begin + BLOCK]).flatten(1)
        best = rows.new_full((len(rows),), torch.inf)
        which = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        for start in range(0, n, BLOCK):
            columns = to_box(inputs[start : start + BLOCK]).flatten(1)
            apart = torch.cdist(rows, columns, compute_mode="use_mm_for_euclid_dist")
            if start == begin:
                apart.fill_diagonal_(torch.inf)  # no input is its own neighbour
            least, place = apart.min(dim=1)
            closer = least < best
            best, which = torch.where(closer, least, best), torch.where(closer, place + start, which)
        # By a matrix product small distances are mostly rounding: the chosen pairs are measured again.
        partners = to_box(inputs[which]).flatten(1)
        distance[begin : begin + BLOCK] = torch.linalg.vector_norm(rows - partners, dim=1).cpu()
        neighbour[begin : begin + BLOCK] = which.cpu()
    return distance, neighbour
