"""Rows of data that are found again by their values."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class KnownRows:
    """Finds rows among those of a data set, in any order and number, by 64 bits that are a function of their values.

    Args:
        tensors: the data, ``(N, ...)`` each; those without dimensions are ignored.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        tensors = [tensor for tensor in tensors if tensor.ndim]
        self.shapes = [tensor.shape[1:] for tensor in tensors]
        self.factors = [
            torch.randint(-(2**63), 2**63 - 1, (tensor[0].numel(),), generator=generator).to(tensor.device) | 1
            for tensor in tensors
        ]
        self.keys, self.rows = self._keys(tensors).sort()

    def find(self, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return which row of the data set each row is, ``(B,)``, and whether it is one of them."""
        if [tensor.shape[1:] for tensor in tensors if tensor.ndim] != self.shapes:
            length = next(len(tensor) for tensor in tensors if tensor.ndim)
            none = torch.zeros(length, dtype=torch.bool, device=self.rows.device)
            return none.to(torch.int64), none
        keys = self._keys(tensors)
        places = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return self.rows[places], self.keys[places] == keys

    def _keys(self, tensors: list[Tensor]) -> Tensor:
        """Return a number for each row, from its bits: integer arithmetic, which is the same in a batch of any size."""
        data = [tensor for tensor in tensors if tensor.ndim]
        numbers = [(_mixed(_bits(t)) * factors).sum(1) for t, factors in zip(data, self.factors, strict=True)]
        return torch.stack(numbers).sum(0)


def _bits(tensor: Tensor) -> Tensor:
    """Return the bits of each element as an integer, ``(B, F)``."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.int8)
    return tensor.view(_INTEGERS[tensor.element_size()]).reshape(len(tensor), -1).to(torch.int64)


def _mixed(bits: Tensor) -> Tensor:
    """Let low bits depend on high ones: those of 0.0 and 1.0 differ in high ones alone."""
    bits = bits * 0x5851F42D4C957F2D
    return bits ^ (bits >> 29)
