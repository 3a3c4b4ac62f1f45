"""Data: image data sets, mini-batches in memory, binarization."""

from __future__ import annotations

from ._torchvision import import_torchvision
from .batches import Batches
from .binarize import binarize, to_float
from .datasets import DATASETS, Images, default_root, load
from .noise import uniform
from .split import split

__all__ = [
    "DATASETS",
    "Batches",
    "Images",
    "binarize",
    "default_root",
    "import_torchvision",
    "load",
    "split",
    "to_float",
    "uniform",
]
