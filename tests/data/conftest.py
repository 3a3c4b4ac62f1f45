"""Small data files in the layout of torchvision, made on the spot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the four files of a data set with 20 + 10 random images and returns the root."""

    def make(folder: str = "FashionMNIST", shape: tuple[int, int] = (28, 28)) -> Path:
        raw = tmp_path / folder / "raw"
        raw.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for part, n in (("train", 20), ("t10k", 10)):
            (raw / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(rng.integers(0, 256, (n, *shape))))
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(n) % 10))
        return tmp_path

    return make
