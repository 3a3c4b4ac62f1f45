"""Real data with outliers: a Laplace distribution."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from .location_scale import LocationScale

__all__ = ["LaplaceLikelihood"]


class LaplaceLikelihood(LocationScale):
    r"""Independent Laplace elements, for real data with outliers; the loss is the absolute error.

    .. math:: p(x \mid z) = \prod_i \frac{1}{2 b_i} e^{-|x_i - \mu_i(z)| / b_i}, \qquad \mu(z) = \mathrm{network}(z)

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the locations; with ``scale="predicted"`` twice as many
            along the first dimension of ``E``: the locations, then the scales before softplus.
        scale: :math:`b`: a number (fixed), ``"shared"`` (one learned number), ``"per-dimension"`` (a learned number for
            each element of ``E``) or ``"predicted"`` (from ``z``, by the network).
        event_shape: ``E``, the shape of one datum; None means a vector, as long as the network's output.
        min_scale: lower bound of a learned scale, in the unit of ``x``.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``E``.

    Raises:
        ValueError, TypeError: as ``GaussianLikelihood``.

    Example:
        >>> import torch
        >>> likelihood = LaplaceLikelihood(torch.nn.Linear(2, 3), scale=1.0)
        >>> likelihood(torch.zeros(5, 2)).variance[0]
        tensor([2., 2., 2.])

    Source:
        Kotz, Kozubowski and Podgorski (2001), The Laplace distribution and generalizations, equation 2.1.1.
    """

    unit_deviation = 2**0.5

    def family(self, loc: Tensor, scale: Tensor | float) -> dist.Laplace:
        """Return the Laplace distribution."""
        return dist.Laplace(loc, scale)
