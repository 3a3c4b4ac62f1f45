"""What a likelihood returns: a distribution over one datum that refuses what cannot be one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .._checks import require_event_shape, require_float

__all__ = ["Observation"]


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
        support = self.base_dist.support
        in_support = support.check(x) if support is constraints.boolean else support.check(x) & x.isfinite()
        if self._validate_args and not in_support.all():
            values, fix = self.expected
            raise ValueError(f"x: expected {values}, got {x[~in_support][0].item():.6g}. {fix}")
        outside = (~in_support).to(x.dtype)  # summed as floats: compiled, several times as fast as Tensor.all
        outside = outside.flatten(outside.ndim - self.reinterpreted_batch_ndims).sum(-1) > 0
        return super().log_prob(x).masked_fill(outside, -math.inf)
