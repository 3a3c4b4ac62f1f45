"""A distribution that is shifted and scaled, element by element, by parameters of each datum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor


class Move(NamedTuple):
    """Shifts and scales of a latent variable, for each datum."""

    shift: Tensor  # in standard deviations of the distribution that is moved: plates and event, the data at dim
    log_scale: Tensor
    dim: int  # negative, from the right of shift

    def of(self, fn: Any) -> Any:
        """Return the moved distribution: of a normal one with independent elements again such a one."""
        moved = Moved(fn, self.shift, self.log_scale)
        base = fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn
        if not isinstance(base, torch.distributions.Normal):
            return moved
        return dist.Normal(moved.mean, base.scale * self.log_scale.exp()).to_event(fn.event_dim)

    def along_the_path(self, fn: Any) -> Moved:
        """Return the moved distribution, whose log-density passes no gradient to shift and scale but by the value."""
        return Moved(fn, self.shift, self.log_scale, path=True)

    def rows(self, rows: Tensor, are_known: Tensor) -> Move:
        """Return those of these rows of the data; NaN where they are not known."""
        shape = (len(are_known),) + (1,) * (-self.dim - 1)
        shift = self.shift.index_select(self.dim, rows).masked_fill(~are_known.reshape(shape), math.nan)
        return self._replace(shift=shift, log_scale=self.log_scale.index_select(self.dim, rows))


class Moved(dist.TorchDistribution):
    r"""The distribution of :math:`m + s \odot \delta + e^{\tau} \odot (z - m)` for a draw z of ``original``.

    m and s are its mean and standard deviation; 0 and 1 where it does not have them, as a flow.

    Args:
        original: a distribution over real values.
        shift: :math:`\delta`, of a shape that broadcasts with its draws, as that of ``log_scale``, :math:`\tau`.
        path: whether the log-density passes no gradient to ``shift`` and ``log_scale``, but by the value.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch's)
    has_rsample = True

    def __init__(self, original: Any, shift: Tensor, log_scale: Tensor, path: bool = False) -> None:
        self.original, self.shift, self.log_scale, self.path = original, shift, log_scale, path
        super().__init__(original.batch_shape, original.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Real values."""
        return self.original.support

    @property
    def mean(self) -> Tensor:
        """Of the moved distribution."""
        moved: Tensor = self.original.mean + self.original.stddev * self.shift
        return moved

    @property
    def variance(self) -> Tensor:
        """Of the moved distribution."""
        moved: Tensor = self.original.variance * (2 * self.log_scale).exp()
        return moved

    @property
    def covariance_matrix(self) -> Tensor:
        """Of the moved distribution, where the original is a vector that has one."""
        factor = self.log_scale.exp()
        moved: Tensor = self.original.covariance_matrix * factor[..., None] * factor[..., None, :]
        return moved

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Moved:
        """Return the distribution with this batch shape."""
        return Moved(self.original.expand(torch.Size(batch_shape)), self.shift, self.log_scale, self.path)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw, differentiably."""
        z = self.original.rsample(torch.Size(sample_shape))
        center, unit = self._moments()
        draws: Tensor = center + unit * self.shift + (z - center) * self.log_scale.exp()
        return draws

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density."""
        shift, log_scale = (self.shift.detach(), self.log_scale.detach()) if self.path else (self.shift, self.log_scale)
        center, unit = self._moments()
        z = center + (value - center - unit * shift) * (-log_scale).exp()
        event_dim = len(self.event_shape)
        change = log_scale.flatten(log_scale.ndim - event_dim).sum(-1) if event_dim else log_scale
        log_prob: Tensor = self.original.log_prob(z) - change
        return log_prob

    def _moments(self) -> tuple[Any, Any]:
        try:
            return self.original.mean, self.original.stddev
        except NotImplementedError:
            return 0.0, 1.0
