"""Matrix products and convolutions with bfloat16 inputs."""

from __future__ import annotations

import functools
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

    A processor without bfloat16 instructions would take thirty times as long as for float32. There the inputs are
    rounded to bfloat16 all the same, and the product of what they have become is taken in float32.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (aten.addmm.default, aten.baddbmm.default) and not kwargs and _is_float32(args[0]):
            product = aten.mm if func is aten.addmm.default else aten.bmm
            return args[0] + _up(product(_down(args[1]), _down(args[2])))
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
    if not _is_float32(value):
        return value
    rounded = value.bfloat16()
    return rounded if value.device.type != "cpu" or _native() else rounded.float()


@functools.cache
def _native() -> bool:
    """Whether this processor multiplies bfloat16 numbers itself; taken for granted where PyTorch cannot tell."""
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return ask is None or bool(ask())


def _up(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.bfloat16 else value
