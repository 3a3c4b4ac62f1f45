"""The weight of the latent terms of an ELBO: beta."""

from __future__ import annotations

import math
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from .._checks import require_positive_number

__all__ = ["latent_scale"]


_ANNEALING = "Pyro cannot scale by 0; start an annealing at 1e-3."


def latent_scale(beta: float | Tensor) -> Any:
    """Return a context manager that multiplies the log-densities of the sites inside it by ``beta``.

    Entered around the latent sites of both model and guide, it weights the Kullback-Leibler term of the ELBO: beta-VAE,
    and the annealing of beta.

    Args:
        beta: a number above 0. Of a 0-dim tensor only the shape is looked at: under ``CompiledSVI`` it may change
            from step to step without a new capture. Where its value is not above 0, the scale is NaN: Pyro's validation
            refuses it, and ``CompiledSVI`` warns of a loss of NaN and does not apply the step.

    Returns:
        ``pyro.poutine.scale``.

    Raises:
        ValueError: ``beta`` is not a finite number above 0, or a tensor with dimensions.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model():
        ...     with latent_scale(0.5):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> pyro.poutine.trace(model).get_trace().nodes["z"]["scale"]
        0.5

    Source:
        Higgins et al. (2017), beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework,
        equation 4.
    """
    if isinstance(beta, Tensor):
        if beta.ndim:
            raise ValueError(f"beta: expected a number or a 0-dim tensor, got shape {tuple(beta.shape)}.")
        try:
            return poutine.scale(scale=torch.where(beta > 0, beta, math.nan))
        except ValueError:  # Pyro's validation, which a captured step leaves out
            raise ValueError(f"beta: expected a number above 0, got {beta.item()}. {_ANNEALING}") from None
    try:
        return poutine.scale(scale=require_positive_number("beta", beta))
    except ValueError as error:
        raise ValueError(f"{error} {_ANNEALING}") from None
