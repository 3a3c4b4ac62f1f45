"""Image data sets: MNIST, FashionMNIST, KMNIST, and the small digits of scikit-learn."""

from __future__ import annotations

import hashlib
import os
import socket
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._torchvision import import_torchvision
from .idx import read_idx

DATASETS = ("mnist", "fashion-mnist", "kmnist", "digits")

# Name of the class in torchvision.datasets, which is also the name of its folder.
_CLASS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
# Number of dimensions of each file, and its MD5 for MNIST. torchvision checks the files of the other two sets when it
# downloads them.
_FILES = {
    "train-images-idx3-ubyte": (3, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": (1, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": (3, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": (1, "27ae3e4e09519cfbb04c329615203637"),
}
_NETWORK_TIMEOUT = 30.0  # seconds without an answer after which a download fails


class Images(NamedTuple):
    """Grey images with labels, divided into training and test data.

    Attributes:
        name: Name of the data set, one of ``DATASETS``.
        train_images: Flat images, (N, D) uint8 in 0..255, with D the number of pixels.
        train_labels: Classes, (N,) int64 in 0..9.
        test_images: Flat images, (M, D) uint8.
        test_labels: Classes, (M,) int64.
        image_shape: Height and width of an image in pixels; their product is D.

    Example:
        >>> load("digits").image_shape
        (8, 8)
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    image_shape: tuple[int, int]


def default_root() -> Path:
    """Return the folder of the data sets if none is given: ``pyro_vae`` in the user's cache folder.

    Returns:
        ``$XDG_CACHE_HOME/pyro_vae``, or ``~/.cache/pyro_vae``.

    Example:
        >>> default_root().name
        'pyro_vae'
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro_vae"


def load(name: str, root: str | os.PathLike[str] | None = None, *, download: bool = False) -> Images:
    """Load a data set of images into memory, as uint8.

    ``"mnist"``, ``"fashion-mnist"`` and ``"kmnist"`` have 60,000 + 10,000 images of 28 x 28 pixels. They are read from
    ``root``, in the layout of torchvision (``root/MNIST/raw/train-images-idx3-ubyte`` and so on), and checked: header,
    size, labels, and for MNIST the published MD5. Only with ``download=True`` are missing files fetched, by
    torchvision, which checks their published MD5.

    ``"digits"`` are the 1,797 digits of 8 x 8 pixels that ship inside scikit-learn. Sorted by class, every fifth image
    is test data: 1,438 + 359. They need neither ``root`` nor network.

    Args:
        name: One of ``"mnist"``, ``"fashion-mnist"``, ``"kmnist"`` and ``"digits"``.
        root: Folder of the data sets. Default: :func:`default_root`.
        download: Whether to fetch missing files from the network into ``root``.

    Returns:
        Images and labels of the train and the test part.

    Raises:
        ValueError: If there is no data set of that name, or a file is truncated or corrupt.
        FileNotFoundError: If files are missing.
        ConnectionError: If missing files could not be downloaded.
        OSError: If a file cannot be read.

    Example:
        >>> digits = load("digits")
        >>> digits.train_images.shape, digits.train_images.dtype, digits.test_images.shape
        (torch.Size([1438, 64]), torch.uint8, torch.Size([359, 64]))

    Source:
        Y. LeCun, L. Bottou, Y. Bengio and P. Haffner (1998), Gradient-based learning applied to document recognition;
        H. Xiao, K. Rasul and R. Vollgraf (2017), Fashion-MNIST; T. Clanuwat and others (2018), Deep learning for
        classical Japanese literature; E. Alpaydin and C. Kaynak (1998), Optical recognition of handwritten digits.
    """
    if name not in DATASETS:
        raise ValueError(f"name: expected one of {', '.join(DATASETS)}, got {name!r}.")
    if name == "digits":
        return _load_digits()
    root = default_root() if root is None else Path(root)
    folder = root / _CLASS[name] / "raw"
    if download and not all((folder / file).exists() for file in _FILES):
        _download(name, root)
    missing = [file for file in _FILES if not (folder / file).exists()]
    if missing:
        raise FileNotFoundError(
            f"{name}: missing in {folder}: {', '.join(missing)}. "
            f"Pass download=True, or root= a folder that holds {_CLASS[name]}/raw/ with the four unpacked files."
        )
    parts = []
    for images_file, labels_file in (list(_FILES)[:2], list(_FILES)[2:]):
        images = _read(name, folder / images_file)
        labels = _read(name, folder / labels_file)
        if len(images) == 0 or len(labels) != len(images):
            raise ValueError(
                f"{folder / labels_file}: expected as many labels as there are images in {images_file}, at least one, "
                f"got {len(labels)} labels for {len(images)} images. Fetch both again."
            )
        if labels.max() > 9:
            raise ValueError(f"{folder / labels_file}: expected labels 0..9, got {int(labels.max())}. Fetch it again.")
        parts.append((images, labels))
    (train_images, train_labels), (test_images, test_labels) = parts
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"{folder}: expected train and test images of one shape, got {tuple(train_images.shape[1:])} and "
            f"{tuple(test_images.shape[1:])} pixels. Fetch them again."
        )
    height, width = train_images.shape[1:]
    return Images(
        name, train_images.flatten(1), train_labels.long(), test_images.flatten(1), test_labels.long(), (height, width)
    )


def _read(name: str, path: Path) -> Tensor:
    ndim, published = _FILES[path.name]
    values = read_idx(path, ndim)
    if name == "mnist":
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if found != published:
            raise ValueError(
                f"{path}: is not the published file of MNIST: expected MD5 {published}, got {found}. "
                "It is damaged, or it is another file. Delete it and fetch it again (download=True)."
            )
    return values


def _download(name: str, root: Path) -> None:
    dataset = getattr(import_torchvision().datasets, _CLASS[name])
    before = socket.getdefaulttimeout()  # torchvision sets no limit and could wait for ever
    try:
        socket.setdefaulttimeout(_NETWORK_TIMEOUT)
        dataset(root, train=True, download=True)
    except (RuntimeError, OSError, EOFError, HTTPException) as error:
        raise ConnectionError(
            f"{name}: could not be downloaded into {root}: {' '.join(str(error).split())} "
            f"Give a local copy instead: root= a folder that holds {_CLASS[name]}/raw/ with {', '.join(_FILES)}."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _load_digits() -> Images:
    from sklearn.datasets import load_digits  # imported here, because it takes a second

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(np.round(pixels * 255 / 16).astype(np.uint8))  # grey levels 0..16
    classes = torch.from_numpy(labels).long()
    by_class = classes.argsort(stable=True)
    is_test = torch.zeros(len(classes), dtype=torch.bool)
    is_test[by_class[4::5]] = True
    return Images("digits", images[~is_test], classes[~is_test], images[is_test], classes[is_test], (8, 8))
