"""Data: image data sets, mini-batches in memory, binarisation."""

from ._torchvision import import_torchvision
from .batches import Batches
from .binarise import binarise, to_float
from .datasets import DATASETS, Images, default_root, load
from .noise import uniform
from .split import split

__all__ = [
    "DATASETS",
    "Batches",
    "Images",
    "binarise",
    "default_root",
    "import_torchvision",
    "load",
    "split",
    "to_float",
    "uniform",
]
