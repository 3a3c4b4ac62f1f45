"""Data: image data sets, tables, mini-batches in memory, binarization."""

from __future__ import annotations

from ._torchvision import import_torchvision
from .batches import Batches
from .binarize import binarize, to_float
from .datasets import DATASETS, Images, default_root, load
from .noise import uniform
from .split import split
from .table import Table, table

__all__ = [
    "DATASETS",
    "Batches",
    "Images",
    "Table",
    "binarize",
    "default_root",
    "import_torchvision",
    "load",
    "split",
    "table",
    "to_float",
    "uniform",
]
