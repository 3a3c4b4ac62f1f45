"""The output bias of a decoder, from which training starts with p(x|z) of the data's mean at every z."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .._checks import require_float

__all__ = ["data_mean", "mean_log_rate", "set_output_bias"]


def data_mean(x: Tensor, *, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """Return the mean of each element over the data; refuse no data, and values that are not finite or out of range."""
    require_float("x", x)
    if len(x) == 0:
        raise ValueError(f"x: expected at least one datum, got shape {tuple(x.shape)}.")
    mean = x.mean(0)
    if not mean.isfinite().all():
        raise ValueError("x: expected finite values, got NaN or infinity. Remove or impute values that are missing.")
    if not (x.min() >= low and x.max() <= high):
        fix = "Rescale it (8-bit pixels: x / 255)." if high == 1 else "Correct the values, or use GaussianLikelihood."
        raise ValueError(
            f"x: expected values in [{low:g}, {high:g}], got values from {x.min():.4g} to {x.max():.4g}. {fix}"
        )
    return mean


def set_output_bias(network: nn.Module, *parts: Tensor) -> None:
    """Write the bias of the network's last layer, which is ``network.output`` (as in ``MLP``) or ``network`` itself.

    ``parts`` are the biases of the parts that ``network_output`` divides the output into, ``E`` each.
    """
    bias = torch.cat(parts)
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


def mean_log_rate(x: Tensor, log_exposure: Tensor | None) -> Tensor:
    """Return the log of the counts over the exposures, for each element; elements without a count get half of one."""
    total = (data_mean(x, low=0.0) * len(x)).clamp(min=0.5)
    exposure = torch.as_tensor(float(len(x))) if log_exposure is None else log_exposure.exp().expand_as(x).sum(0)
    return total.log() - exposure.to(total).log()
