"""The distribution that a likelihood returns, and the network output that it is made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from .._checks import dtype_of, require_event_shape, require_float
from .._precision import at_least_float32

__all__ = ["Observation", "network_output"]


class Observation(dist.Independent):
    """A distribution over one datum that refuses values of a wrong shape, of a wrong dtype, or outside its support.

    Args:
        base: a distribution over the elements of a datum.
        event_shape: the shape of one datum; None means a vector.
        expected: for the error, what the elements must be, and a sentence that says what to do about others.
        dtype: the dtype of the data.
        check: whether each element is one that the density takes; by default those of the support of ``base``.
    """

    def __init__(
        self,
        base: Any,
        event_shape: Sequence[int] | None,
        expected: tuple[str, str],
        dtype: torch.dtype,
        check: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(base, 1 if event_shape is None else len(event_shape))
        self.expected = expected
        self.dtype = dtype
        self.check = check

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Observation:
        """Return the distribution with this batch shape."""
        base = self.base_dist.expand(torch.Size(batch_shape) + self.event_shape)
        return Observation(base, self.event_shape, self.expected, self.dtype, self.check)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x|z) in nats, one number per datum; minus infinity outside the support."""
        require_float("x", x, self.dtype)
        require_event_shape("x", x, self.event_shape, "p(x|z)")
        support = self.base_dist.support
        in_support = (self.check or support.check)(x)
        if support is not constraints.boolean:
            in_support = in_support & x.isfinite()
        if self._validate_args and not in_support.all():
            values, fix = self.expected
            raise ValueError(f"x: expected {values}, got {x[~in_support][0].item():.6g}. {fix}")
        outside = (~in_support).to(x.dtype)  # summed as floats: compiled, several times as fast as Tensor.all
        outside = outside.flatten(outside.ndim - self.reinterpreted_batch_ndims).sum(-1) > 0
        return super().log_prob(x).masked_fill(outside, -math.inf)


def network_output(
    network: nn.Module, z: Tensor, event_shape: Sequence[int] | None, parameters: int = 1
) -> tuple[Tensor, ...]:
    """Return what the network gives for latent variables ``z`` ``(*, D)``, in at least float32.

    Args:
        network: maps ``(*, D)`` to ``(*, parameters * E_1, E_2, ...)``.
        z: latent variables.
        event_shape: ``E``; None means a vector, as long as the network's output.
        parameters: how many numbers the network gives for each element of a datum.

    Returns:
        ``parameters`` tensors ``(*, *E)``, the parts of the output along the first dimension of ``E``.
    """
    require_float("z", z, dtype_of(network))
    output = at_least_float32(network(z))
    first = -1 if event_shape is None else -len(event_shape)
    if event_shape is None:
        fits = output.ndim > 0 and output.shape[-1] % parameters == 0
        expected = f"(*, {parameters} * E)"
    else:
        wanted = (parameters * event_shape[0], *event_shape[1:])
        fits = tuple(output.shape[first:]) == wanted
        expected = f"(*, {', '.join(map(str, wanted))}), event_shape being {tuple(event_shape)}"
    if not fits:
        per_element = f" ({parameters} numbers for each element of a datum)" if parameters > 1 else ""
        raise ValueError(
            f"network: expected output of shape {expected}{per_element}, got {tuple(output.shape)}. "
            "Build the network for this shape, or change event_shape."
        )
    return output.chunk(parameters, dim=first)
