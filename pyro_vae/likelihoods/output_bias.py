"""The output bias of a decoder, from which training starts with p(x|z) of the data's mean at every z."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._checks import require_float

__all__ = ["data_mean", "set_output_bias"]


def data_mean(x: Tensor, *, within_unit_interval: bool = False) -> Tensor:
    """Return the mean of each element over the data; refuse empty data, values that are not finite or off [0, 1]."""
    require_float("x", x)
    if len(x) == 0:
        raise ValueError(f"x: expected at least one datum, got shape {tuple(x.shape)}.")
    mean = x.mean(0)
    if not mean.isfinite().all():
        raise ValueError("x: expected finite values, got NaN or infinity. Remove or impute values that are missing.")
    if within_unit_interval and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(
            f"x: expected values in [0, 1], got values from {x.min():.4g} to {x.max():.4g}. "
            "Rescale it (8-bit pixels: x / 255)."
        )
    return mean


def set_output_bias(network: nn.Module, bias: Tensor) -> None:
    """Write the bias of the network's last layer, which is ``network.output`` (as in ``MLP``) or ``network`` itself."""
    output = getattr(network, "output", network)
    target = getattr(output, "bias", None)
    if not isinstance(target, Tensor):
        raise ValueError(
            "network: expected a last layer with a bias, as network.output (as MLP has) or the network itself, "
            f"got {type(network).__name__} without. Add the property, or do not call initialize_output_bias."
        )
    if target.shape != bias.flatten().shape:
        raise ValueError(
            f"network: expected an output bias of shape ({bias.numel()},), the data's, got {tuple(target.shape)}. "
            "Give the network as many outputs as x has elements."
        )
    with torch.no_grad():
        target.copy_(bias.flatten())
