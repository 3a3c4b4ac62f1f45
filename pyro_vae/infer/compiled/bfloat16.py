"""Matrix products and convolutions with bfloat16 inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Bfloat16Products"]

aten = torch.ops.aten


class Bfloat16Products(TorchDispatchMode):
    """Inside, float32 matrix products and convolutions take bfloat16 inputs, forwards and backwards.

    All else stays float32: parameters, gradients, optimiser state, activations' functions and log-densities. Where
    ``torch.autocast`` chooses a dtype per operation, this changes the products alone, so no density is ever summed in
    bfloat16.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (aten.addmm.default, aten.baddbmm.default) and not kwargs and _is_float32(args[0]):
            product = aten.mm if func is aten.addmm.default else aten.bmm
            return args[0] + product(args[1].bfloat16(), args[2].bfloat16()).float()
        if func in _PRODUCTS and any(_is_float32(a) for a in args):
            out = func(*(_down(a) for a in args), **kwargs)
            return tuple(_up(o) for o in out) if isinstance(out, tuple) else _up(out)
        return func(*args, **kwargs)


_PRODUCTS = {
    aten.mm.default,
    aten.bmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
}


def _is_float32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.float32


def _down(value: Any) -> Any:
    return value.bfloat16() if _is_float32(value) else value


def _up(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.bfloat16 else value
