"""The output bias of a decoder, from which training starts with p(x|z) of the data's mean at every z."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .._checks import require_float, require_mask

__all__ = [
    "mean_log_rate",
    "mean_over_data",
    "observed_data",
    "set_output_bias",
    "share_of_data",
    "variance_over_data",
]


def observed_data(x: Tensor, mask: Tensor | None, *, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """Return the data with NaN where they are missing; refuse no data, NaN elsewhere, and values out of range.

    Args:
        x: data ``(N, *E)``.
        mask: True where ``x`` is observed, of the shape of ``x``; None: everywhere.
        low: the least value.
        high: the greatest value.
    """
    require_float("x", x)
    if len(x) == 0:
        raise ValueError(f"x: expected at least one datum, got shape {tuple(x.shape)}.")
    if mask is not None:
        require_mask("mask", mask, x)
        x = x.where(mask, math.nan)
        if not mask.any():
            raise ValueError("mask: expected at least one observed element, got none.")
    observed = x if mask is None else x[mask]
    if not observed.isfinite().all():
        raise ValueError(
            "x: expected finite values, got NaN or infinity. Remove values that are missing, or say where with "
            "mask=~x.isnan()."
        )
    if not (observed.min() >= low and observed.max() <= high):
        fix = "Rescale it (8-bit pixels: x / 255)." if high == 1 else "Correct the values, or use GaussianLikelihood."
        raise ValueError(
            f"x: expected values in [{low:g}, {high:g}], got values from {observed.min():.4g} to "
            f"{observed.max():.4g}. {fix}"
        )
    return x


def mean_over_data(x: Tensor) -> Tensor:
    """Return the mean of each element over its data that are not NaN; of all elements, for one that has none."""
    mean = x.nanmean(0)
    return mean.where(mean.isfinite(), x.nanmean())


def variance_over_data(x: Tensor) -> Tensor:
    """Return the variance of each element (divided by N) over its data that are not NaN."""
    return mean_over_data((x - mean_over_data(x)).square())


def share_of_data(x: Tensor, value: float) -> Tensor:
    """Return the share of an element's data that are ``value``, among those that are not NaN."""
    return mean_over_data((x == value).to(x.dtype).where(~x.isnan(), math.nan))


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
    """Return the log of the counts over the exposures, for each element; elements without a count get half of one.

    Args:
        x: counts ``(N, *E)``, NaN where they are missing.
        log_exposure: what broadcasts with ``x``; None: all are 0.
    """
    seen = (~x.isnan()).to(x.dtype)
    exposure = seen if log_exposure is None else seen * log_exposure.exp()
    total, exposure = x.nansum(0).clamp(min=0.5), exposure.sum(0)
    rate = total.log() - exposure.to(total).log()
    return rate.where(exposure > 0, rate[exposure > 0].mean())
