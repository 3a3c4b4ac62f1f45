"""The IDX file format of MNIST: a header of big-endian integers, then bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_idx(path: Path, ndim: int) -> Tensor:
    """Read an IDX file of unsigned bytes; refuse one that is not complete.

    Args:
        path: Path of the unpacked file.
        ndim: Number of dimensions it should have: 3 for images, 1 for labels.

    Returns:
        The bytes as uint8, in the shape given by the header.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is truncated, too long, or not an IDX file of unsigned bytes.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels-idx1-ubyte"
        >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        >>> read_idx(path, ndim=1)
        tensor([7, 2, 1], dtype=torch.uint8)

    Source:
        Y. LeCun, C. Cortes and C. J. C. Burges (1998), The MNIST database of handwritten digits, "File formats".
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        reason = error.strerror or error
        raise type(error)(f"{path}: cannot be read ({reason}). Check the file and its permissions.") from error
    size = 4 + 4 * ndim  # two zeros, the type (8: unsigned byte), the number of dimensions; then each dimension
    magic = bytes([0, 0, 8, ndim])
    if content[:2].tobytes() == b"\x1f\x8b":
        raise ValueError(f"{path}: is compressed by gzip. Rename it to end in .gz and unpack it with gunzip.")
    if content[:4].tobytes() != magic[: len(content)]:
        raise ValueError(
            f"{path}: is not an IDX file of bytes with {ndim} dimension(s): expected it to start with {magic.hex()}, "
            f"got {content[:4].tobytes().hex()}. Fetch it again."
        )
    if len(content) < size:
        raise ValueError(
            f"{path}: is truncated: expected a header of {size} bytes, got {len(content)} in all. Fetch it again."
        )
    shape = [int(n) for n in content[4:size].view(">u4")]
    expected = size + int(np.prod(shape, dtype=object))  # Python integers: a damaged header cannot overflow
    if len(content) != expected:
        what = "is truncated" if len(content) < expected else "is too long"
        raise ValueError(
            f"{path}: {what}: expected {expected} bytes for the shape {tuple(shape)} in its header, "
            f"got {len(content)}. Fetch it again."
        )
    return torch.from_numpy(content)[size:].view(shape)
