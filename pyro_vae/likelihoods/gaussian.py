"""Real data: a normal distribution whose scale is fixed or learned."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from .location_scale import LocationScale

__all__ = ["GaussianLikelihood"]


class GaussianLikelihood(LocationScale):
    r"""Independent normal elements, for real data.

    .. math:: p(x \mid z) = \prod_i \mathcal{N}(x_i \mid \mu_i(z), \sigma_i^2), \qquad \mu(z) = \mathrm{network}(z)

    A learned scale is :math:`\sigma = \sigma_{\min} + \operatorname{softplus}(s)`. Without the lower bound the density
    of data that the decoder fits exactly (constant pixels) would grow to infinity.

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the means; with ``scale="predicted"`` twice as many
            along the first dimension of ``E``: the means, then the scales before softplus.
        scale: :math:`\sigma`: a number (fixed), ``"shared"`` (one learned number), ``"per-dimension"`` (a learned
            number for each element of ``E``) or ``"predicted"`` (from ``z``, by the network).
        event_shape: ``E``, the shape of one datum, for instance ``(1, 28, 28)``; None means a vector, as long as the
            network's output. With ``scale="per-dimension"`` it must be given if the network has no ``out_features``.
        min_scale: :math:`\sigma_{\min} > 0`, in the unit of ``x``.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``E``; its ``log_prob`` is a
        density (nats per datum, in the unit of ``x``) and so can be above 0.

    Raises:
        ValueError: an unknown or non-positive ``scale``; ``event_shape`` is not a sequence of positive integers, or not
            the shape of the network's output; (from ``log_prob``) data that are not finite, or of another event shape.
        TypeError: data or latent variables that are not floats of the parameters' dtype.

    Example:
        >>> import torch
        >>> likelihood = GaussianLikelihood(torch.nn.Linear(2, 3), scale="shared")
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])

    Source:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, equation 12; for a learned scale, Rybkin, Daniilidis
        and Levine (2021), Simple and effective VAE training with calibrated decoders.
    """

    def family(self, loc: Tensor, scale: Tensor | float) -> dist.Normal:
        """Return the normal distribution."""
        return dist.Normal(loc, scale)
