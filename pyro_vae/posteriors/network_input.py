"""The input of a posterior's network: the data, and which of them are observed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._checks import dtype_of, require_float, require_mask

__all__ = ["network_input"]


def network_input(network: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the input of ``network``: ``x``, or with a mask ``x`` joined with the mask.

    What is missing is replaced by 0. The mask, 1 where x is observed, follows behind x: along the first dimension of
    the network's input, which has ``network.event_dim`` dimensions, or those of ``network.image_shape``, or else 1. A
    vector of E elements becomes one of 2 * E, an image of C channels one of 2 * C.

    Args:
        network: the posterior's network.
        x: data ``(*, *E)``.
        mask: True where x is observed, of the shape of ``x``; None leaves ``x`` as it is.

    Raises:
        TypeError: ``x`` is not a floating-point tensor of the network's dtype.
        ValueError: ``mask`` is not a boolean tensor of the shape of ``x``; the network has inputs for ``x`` alone.
    """
    require_float("x", x, dtype_of(network))
    if mask is None:
        return x
    require_mask("mask", mask, x)
    width = x.shape[-1]
    if getattr(network, "in_features", None) == width:
        raise ValueError(
            f"network: expected in_features={2 * width}, for x and for which of its {width} elements are observed "
            f"(elements may be missing), got {width}. Build it with twice as many inputs as x has elements."
        )
    event_dim = getattr(network, "event_dim", None) or len(getattr(network, "image_shape", (1,)))
    return torch.cat([x.where(mask, torch.zeros_like(x)), mask.to(x.dtype)], dim=-event_dim)
