"""Data: sources become checked splits of tensors, and splits become batches that follow from the step alone."""

from jemstone.data.batches import Augment, Batch, Stream, augment, labelled
from jemstone.data.dataset import BOX, UNLABELLED, Dataset, Moments, Split, standardise, to_box, to_box_radius
from jemstone.data.images import grid, to_uint8
from jemstone.data.sources import load_dataset, load_inputs

__all__ = [
    "BOX",
    "UNLABELLED",
    "Augment",
    "Batch",
    "Dataset",
    "Moments",
    "Split",
    "Stream",
    "augment",
    "grid",
    "labelled",
    "load_dataset",
    "load_inputs",
    "standardise",
    "to_box",
    "to_box_radius",
    "to_uint8",
]
