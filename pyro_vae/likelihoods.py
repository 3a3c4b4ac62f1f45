"""Likelihoods p(x|z): modules whose ``forward(z)`` returns a distribution over one datum.

Every density is normalised, and zero outside its support: there ``log_prob`` is minus infinity, and with Pyro's
validation on (the default) a ``ValueError`` names the value and the fix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import dtype_of, require_event_shape, require_float, require_positive_int
from ._continuous_bernoulli import ContinuousBernoulli
from ._precision import at_least_float32

__all__ = ["BernoulliLikelihood", "ContinuousBernoulliLikelihood", "GaussianLikelihood"]


class Observation(dist.Independent):
    """A distribution over one datum that refuses what cannot be one: a wrong shape or dtype, values off its support.

    Args:
        base: a distribution over the elements of a datum.
        event_dim: how many of its rightmost dimensions make one datum.
        expected: what one element must be, in words, and what to do about another.
    """

    def __init__(self, base: Any, event_dim: int, expected: tuple[str, str]) -> None:
        super().__init__(base, event_dim)
        self.expected = expected

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Observation:
        base = self.base_dist.expand(torch.Size(batch_shape) + self.event_shape)
        return Observation(base, self.reinterpreted_batch_ndims, self.expected)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x|z) in nats, one number a datum; minus infinity off the support."""
        require_float("x", x, self.base_dist.mean.dtype)
        require_event_shape("x", x, self.event_shape, "p(x|z)")
        in_support = self.base_dist.support.check(x) & x.isfinite()
        if self._validate_args and not in_support.all():
            values, fix = self.expected
            raise ValueError(f"x: expected {values}, got {x[~in_support][0].item():.6g}. {fix}")
        in_support = in_support.flatten(in_support.ndim - self.reinterpreted_batch_ndims).all(-1)
        return super().log_prob(x).masked_fill(~in_support, -math.inf)


class BernoulliLikelihood(nn.Module):
    r"""Independent Bernoulli elements, for data in {0, 1}.

    .. math:: p(x \mid z) = \prod_i \pi_i(z)^{x_i} (1 - \pi_i(z))^{1 - x_i}, \qquad
        \operatorname{logit} \pi(z) = \mathrm{network}(z)

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the logits.
        event_dim: number of dimensions of one datum, ``len(E)``: 1 for vectors, 3 for images ``(C, H, W)``.

    Returns:
        ``forward(z)`` returns a distribution of batch shape ``*`` and event shape ``E``.

    Raises:
        ValueError: (from ``log_prob``) data outside {0, 1}, grey pixels say, or of another event shape.
        TypeError: data or latent variables that are not floats of the parameters' dtype.

    Example:
        >>> likelihood = BernoulliLikelihood(nn.Linear(2, 784))
        >>> p = likelihood(torch.zeros(5, 2))
        >>> p.log_prob(torch.ones(5, 784)).shape
        torch.Size([5])

    Source:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, equation 11.
    """

    def __init__(self, network: nn.Module, *, event_dim: int = 1) -> None:
        super().__init__()
        self.network = network
        self.event_dim = require_positive_int("event_dim", event_dim)

    def forward(self, z: Tensor) -> Observation:
        """p(x|z)."""
        require_float("z", z, dtype_of(self.network))
        logits = at_least_float32(self.network(z))
        return Observation(
            dist.Bernoulli(logits=logits),
            self.event_dim,
            (
                "values in {0, 1} for BernoulliLikelihood",
                "Binarise it (pyro_vae.data.binarise) or use ContinuousBernoulliLikelihood.",
            ),
        )

    def initialise_output_bias(self, x: Tensor) -> None:
        """Start from p(x|z) = the mean of ``x`` ``(N, *E)``, which training need not find then (1 nat on MNIST)."""
        mean = _data_mean(x, within_unit_interval=True).clamp(1e-3, 1 - 1e-3)
        _set_output_bias(self.network, mean.logit())


class ContinuousBernoulliLikelihood(nn.Module):
    r"""Independent continuous Bernoulli elements, for grey values in [0, 1]; normalised, unlike a Bernoulli on greys.

    .. math:: p(x \mid z) = \prod_i C(\lambda_i(z)) \, \lambda_i(z)^{x_i} (1 - \lambda_i(z))^{1 - x_i}, \qquad
        \operatorname{logit} \lambda(z) = L \tanh(\mathrm{network}(z) / L), \quad
        C(\lambda) = \frac{2 \tanh^{-1}(1 - 2 \lambda)}{1 - 2 \lambda}

    The bound L keeps the density of constant elements (pixels that are always black) from running off to infinity: at 0
    it is about :math:`-\operatorname{logit} \lambda`, and so at most L.

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the logits of :math:`\lambda` where L is large.
        event_dim: number of dimensions of one datum, ``len(E)``.
        max_logit: L; ``math.inf`` for no bound.

    Returns:
        ``forward(z)`` returns a distribution of batch shape ``*`` and event shape ``E``; its ``log_prob`` is a density,
        in nats per datum with respect to data in [0, 1], and so can be above 0.

    Raises:
        ValueError: ``max_logit`` is not positive; (from ``log_prob``) data outside [0, 1], or of another event shape.
        TypeError: data or latent variables that are not floats of the parameters' dtype.

    Example:
        >>> likelihood = ContinuousBernoulliLikelihood(nn.Linear(2, 784))
        >>> likelihood(torch.zeros(2)).log_prob(torch.full((784,), 0.5)).shape
        torch.Size([])

    Source:
        Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in variational
        autoencoders, equations 6 to 8.
    """

    def __init__(self, network: nn.Module, *, event_dim: int = 1, max_logit: float = 30.0) -> None:
        super().__init__()
        if not max_logit > 0:
            raise ValueError(f"max_logit: expected a number above 0, got {max_logit!r}.")
        self.network = network
        self.event_dim = require_positive_int("event_dim", event_dim)
        self.max_logit = max_logit

    def forward(self, z: Tensor) -> Observation:
        """p(x|z)."""
        require_float("z", z, dtype_of(self.network))
        logits = at_least_float32(self.network(z))
        if self.max_logit < math.inf:
            logits = self.max_logit * torch.tanh(logits / self.max_logit)
        return Observation(
            ContinuousBernoulli(logits=logits),
            self.event_dim,
            (
                "values in [0, 1] for ContinuousBernoulliLikelihood",
                "Rescale it (8-bit pixels: x / 255) or use GaussianLikelihood.",
            ),
        )

    def initialise_output_bias(self, x: Tensor) -> None:
        """Start from E[x|z] = the mean of ``x`` ``(N, *E)``, by bisection on the logit (the mean is monotone).

        Constant elements would go beyond any logit: theirs stays within 0.9 L, or 100 where there is no bound.
        """
        mean = _data_mean(x, within_unit_interval=True).double()
        limit = min(0.9 * self.max_logit, 100.0)
        low, high = torch.full_like(mean, -limit), torch.full_like(mean, limit)
        for _ in range(50):
            middle = (low + high) / 2
            below = ContinuousBernoulli(logits=middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        logits = (low + high) / 2
        if self.max_logit < math.inf:
            logits = self.max_logit * torch.atanh(logits / self.max_logit)
        _set_output_bias(self.network, logits)


class GaussianLikelihood(nn.Module):
    r"""Independent normal elements, for real data.

    .. math:: p(x \mid z) = \prod_i \mathcal{N}(x_i \mid \mu_i(z), \sigma_i^2), \qquad \mu(z) = \mathrm{network}(z)

    A learned scale is :math:`\sigma = \sigma_{\min} + \operatorname{softplus}(s)`: unbounded, the density of data
    that the decoder fits exactly (constant pixels) runs off to infinity.

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the means; with ``scale="predicted"`` twice as many
            along the first dimension of ``E``: the means, then the scales before softplus.
        scale: :math:`\sigma`: a number (fixed), ``"shared"`` (one learned number), ``"per-dimension"`` (a learned
            number for each element of ``E``) or ``"predicted"`` (from ``z``, by the network).
        event_shape: ``E``; needed where ``len(E) > 1``, and for ``"per-dimension"`` where the network has no
            ``out_features``.
        min_scale: :math:`\sigma_{\min} > 0`, in the unit of ``x``.

    Returns:
        ``forward(z)`` returns a distribution of batch shape ``*`` and event shape ``E``; its ``log_prob`` is a density
        (nats per datum, in the unit of ``x``) and so can be above 0.

    Raises:
        ValueError: an unknown or non-positive ``scale``; a network whose width does not fit; (from ``log_prob``) data
            that are not finite, or of another event shape.
        TypeError: data or latent variables that are not floats of the parameters' dtype.

    Example:
        >>> likelihood = GaussianLikelihood(nn.Linear(2, 3), scale="shared")
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])

    Source:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, equation 12; for a learned scale, Rybkin, Daniilidis
        and Levine (2021), Simple and effective VAE training with calibrated decoders.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        scale: float | str = "shared",
        event_shape: Sequence[int] | None = None,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        if not 0 < min_scale < math.inf:
            raise ValueError(f"min_scale: expected a finite number above 0, got {min_scale!r}.")
        if isinstance(event_shape, int) or (event_shape is not None and len(event_shape) == 0):
            raise ValueError(f"event_shape: expected a sequence of at least one integer, got {event_shape!r}.")
        self.network = network
        self.event_shape = None if event_shape is None else tuple(event_shape)
        self.event_dim = len(self.event_shape or (1,))
        self.min_scale = min_scale
        self.scale = scale
        if scale == "shared":
            self.raw_scale = nn.Parameter(self._inverse_scale(torch.ones(())))
        elif scale == "per-dimension":
            width: Any = self.event_shape or getattr(network, "out_features", None)
            if width is None:
                raise ValueError(
                    'event_shape: expected the shape of one datum for scale="per-dimension", got None, and the network '
                    "has no out_features to take it from. Give event_shape=(...)."
                )
            self.raw_scale = nn.Parameter(self._inverse_scale(torch.ones(width)))
        elif isinstance(scale, str) and scale != "predicted":
            raise ValueError(f'scale: expected a number, "shared", "per-dimension" or "predicted", got {scale!r}.')
        elif not isinstance(scale, str) and (
            isinstance(scale, bool) or not isinstance(scale, (int, float)) or not min_scale <= scale < math.inf
        ):
            raise ValueError(
                f"scale: expected a finite number of at least min_scale={min_scale:g}, or a word for a learned one, "
                f"got {scale!r}. Take a larger scale, a smaller min_scale, or 'per-dimension'."
            )

    def _inverse_scale(self, scale: Tensor) -> Tensor:
        """The s with min_scale + softplus(s) = scale."""
        excess = (scale - self.min_scale).clamp(min=self.min_scale)
        return excess + (-(-excess).expm1()).log()

    def forward(self, z: Tensor) -> Observation:
        """p(x|z)."""
        require_float("z", z, dtype_of(self.network))
        loc = at_least_float32(self.network(z))
        scale: Tensor | float
        if self.scale == "predicted":
            if loc.shape[-self.event_dim] % 2:
                raise ValueError(
                    'network: expected an even number of outputs for scale="predicted" (means and scales), '
                    f"got {loc.shape[-self.event_dim]}. Give the network twice as many outputs as x has elements."
                )
            loc, raw_scale = loc.chunk(2, dim=-self.event_dim)
            scale = self.min_scale + F.softplus(raw_scale)
        elif isinstance(self.scale, str):
            scale = self.min_scale + F.softplus(self.raw_scale)
        else:
            scale = self.scale
        if self.event_shape is not None:
            require_event_shape("network", loc, self.event_shape, "event_shape")
        return Observation(
            dist.Normal(loc, scale),
            self.event_dim,
            ("finite values for GaussianLikelihood", "Remove or impute values that are missing."),
        )

    def initialise_output_bias(self, x: Tensor) -> None:
        """Start from the mean, and where it is learned the scale, of ``x`` ``(N, *E)``."""
        mean = _data_mean(x)
        std = x.std(0, correction=0)
        if self.scale == "predicted":
            _set_output_bias(self.network, torch.cat([mean, self._inverse_scale(std)]))
            return
        _set_output_bias(self.network, mean)
        if isinstance(self.scale, str):
            with torch.no_grad():
                shared = std.square().mean().sqrt()
                self.raw_scale.copy_(self._inverse_scale(shared if self.scale == "shared" else std))


def _data_mean(x: Tensor, *, within_unit_interval: bool = False) -> Tensor:
    """The mean of each element over the data, refusing data that have none."""
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


def _set_output_bias(network: nn.Module, bias: Tensor) -> None:
    """Write the bias of the network's last layer: ``network.output`` as in ``MLP``, or ``network`` itself."""
    output = getattr(network, "output", network)
    target = getattr(output, "bias", None)
    if not isinstance(target, Tensor):
        raise ValueError(
            "network: expected a last layer with a bias, as network.output (as MLP has) or the network itself, "
            f"got {type(network).__name__} without. Add the property, or leave out the initialisation."
        )
    if target.shape != bias.flatten().shape:
        raise ValueError(
            f"network: expected an output bias of shape ({bias.numel()},), the data's, got {tuple(target.shape)}. "
            "Give the network as many outputs as x has elements."
        )
    with torch.no_grad():
        target.copy_(bias.flatten())
