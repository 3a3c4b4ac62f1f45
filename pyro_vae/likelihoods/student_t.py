"""Real data with heavy tails: Student's t distribution."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from .._checks import require_positive_number
from .location_scale import LocationScale

__all__ = ["StudentTLikelihood"]


class StudentTLikelihood(LocationScale):
    r"""Independent elements with Student's t distribution, for real data with heavy tails.

    .. math:: p(x \mid z) = \prod_i \frac{\Gamma(\frac{\nu + 1}{2})}{\Gamma(\frac{\nu}{2}) \sqrt{\pi \nu}\, \sigma_i}
        \left(1 + \frac{(x_i - \mu_i(z))^2}{\nu \sigma_i^2}\right)^{-\frac{\nu + 1}{2}}, \qquad
        \mu(z) = \mathrm{network}(z)

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the locations; with ``scale="predicted"`` twice as many
            along the first dimension of ``E``: the locations, then the scales before softplus.
        df: :math:`\nu`, the degrees of freedom, above 0; E[x|z] exists above 1, the variance above 2.
        scale: :math:`\sigma`: as in ``GaussianLikelihood``.
        event_shape: ``E``, the shape of one datum; None means a vector, as long as the network's output.
        min_scale: lower bound of a learned scale, in the unit of ``x``.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``E``.

    Raises:
        ValueError: ``df`` is not a finite number above 0; otherwise as ``GaussianLikelihood``.
        TypeError: as ``GaussianLikelihood``.

    Example:
        >>> import torch
        >>> StudentTLikelihood(torch.nn.Linear(2, 3), df=4.0, scale=1.0)(torch.zeros(5, 2)).variance[0]
        tensor([2., 2., 2.])

    Source:
        Lange, Little and Taylor (1989), Robust statistical modeling using the t distribution, section 2.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        df: float = 4.0,
        scale: float | str = "shared",
        event_shape: Sequence[int] | None = None,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(network, scale=scale, event_shape=event_shape, min_scale=min_scale)
        self.df = require_positive_number("df", df)
        self.unit_deviation = (self.df / (self.df - 2)) ** 0.5 if self.df > 2 else 1.0

    def family(self, loc: Tensor, scale: Tensor | float) -> dist.StudentT:
        """Return Student's t distribution."""
        return dist.StudentT(self.df, loc, scale)
