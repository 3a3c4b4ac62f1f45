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

__all__ = ["Observation", "network_output", "observed_elements"]


class Observation(dist.Independent):
    """A distribution over one datum that refuses values of a wrong shape, of a wrong dtype, or outside its support.

    Args:
        base: a distribution over the elements of a datum.
        event_shape: the shape of one datum; None means a vector.
        expected: for the error, what the elements must be, and a sentence that says what to do about others.
        dtype: the dtype of the data; None: any float.
        check: whether each element is one that the density takes; by default those of the support of ``base``.
        observed: True for the elements that are observed, ``(*, *E)``; the others are left out of ``log_prob``,
            whatever their value. None: all are.
    """

    def __init__(
        self,
        base: Any,
        event_shape: Sequence[int] | None,
        expected: tuple[str, str],
        dtype: torch.dtype | None,
        check: Callable[[Tensor], Tensor] | None = None,
        observed: Tensor | None = None,
    ) -> None:
        base = base if observed is None else base.mask(observed)
        super().__init__(base, 1 if event_shape is None else len(event_shape))
        self.expected = expected
        self.dtype = dtype
        self.check = check
        self.observed = observed

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Observation:
        """Return the distribution with this batch shape."""
        base = self.base_dist if self.observed is None else self.base_dist.base_dist
        base = base.expand(torch.Size(batch_shape) + self.event_shape)
        return Observation(base, self.event_shape, self.expected, self.dtype, self.check, self.observed)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Observation:
        """Return the distribution with that many batch dimensions, by default all, as event dimensions."""
        n = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        base = self.base_dist if self.observed is None else self.base_dist.base_dist
        event_shape = self.batch_shape[len(self.batch_shape) - n :] + self.event_shape
        return Observation(base, event_shape, self.expected, self.dtype, self.check, self.observed)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x|z) in nats, one number per datum; minus infinity outside the support."""
        require_float("x", x, self.dtype)
        require_event_shape("x", x, self.event_shape, "p(x|z)")
        if self.observed is not None:
            # Replaced before the density: a masked NaN would leave NaN in the gradients.
            x = x.where(self.observed, _a_value_of(self.base_dist, x))
        support = self.base_dist.support
        in_support = (self.check or support.check)(x)
        if support is not constraints.boolean:
            in_support = in_support & x.isfinite()
        if self._validate_args and not in_support.all():
            values, fix = self.expected
            raise ValueError(f"x: expected {values}, got {x[~in_support][0].item():.6g}. {fix}")
        outside = (~in_support).to(x.dtype)  # summed as floats: compiled, several times as fast as Tensor.all
        if self.event_shape:
            outside = outside.flatten(outside.ndim - self.reinterpreted_batch_ndims).sum(-1)
        return super().log_prob(x).masked_fill(outside > 0, -math.inf)


def observed_elements(p: Any, mask: Tensor) -> Observation:
    """Return p(x|z) of the observed elements of x: the others are left out of ``log_prob``, whatever their value.

    The others may be NaN: neither ``log_prob`` nor its gradients depend on them. Samples have all elements.

    Args:
        p: a distribution whose elements are independent given z, as every likelihood of pyro_vae returns it: of batch
            shape ``*`` and event shape ``E``.
        mask: True where x is observed, ``(*, *E)``.

    Raises:
        TypeError: ``p`` is another distribution, whose marginals are not known here.
        ValueError: ``mask`` is not a boolean tensor of a shape that ``p`` broadcasts with.

    Example:
        >>> import pyro.distributions as dist
        >>> p = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        >>> x = torch.tensor([0.5, float("nan"), -0.5])
        >>> observed_elements(p, ~x.isnan()).log_prob(x) == dist.Normal(0.0, 1.0).log_prob(x[::2]).sum()
        tensor(True)

    Source:
        Mattei and Frellsen (2019), MIWAE, equation 3: entries missing at random are left out of the likelihood.
    """
    dtype: torch.dtype | None
    check: Callable[[Tensor], Tensor] | None
    if isinstance(p, Observation):
        base, expected, dtype, check = p.base_dist, p.expected, p.dtype, p.check
        mask = mask if p.observed is None else mask & p.observed
        base = base if p.observed is None else base.base_dist
    elif isinstance(p, torch.distributions.Independent) or not p.event_shape:
        base = p.base_dist if p.event_shape else p
        expected, check = ("values of the support", "Correct them, or use another likelihood."), None
        dtype = None
    else:
        raise TypeError(
            "likelihood: expected a distribution over independent elements (Independent, as the likelihoods of "
            f"pyro_vae return it) to leave out elements that are missing, got {type(p).__name__}. Return "
            "dist.Normal(...).to_event(1), say, or leave mask= out."
        )
    if mask.dtype != torch.bool or tuple(mask.shape[mask.ndim - len(p.event_shape) :]) != tuple(p.event_shape):
        raise ValueError(
            f"mask: expected a boolean tensor of event shape {tuple(p.event_shape)}, that of p(x|z), True where x is "
            f"observed, got {mask.dtype} of shape {tuple(mask.shape)}. Write ~x.isnan(), for instance."
        )
    return Observation(base, tuple(p.event_shape), expected, dtype, check, mask)


def _a_value_of(base: Any, x: Tensor) -> Tensor:
    """Return a value in the support of the elements' distribution."""
    while isinstance(base, dist.MaskedDistribution):
        base = base.base_dist
    if hasattr(base, "a_value"):
        return base.a_value(x)
    support = base.support
    if support.is_discrete:
        return x.new_full((), getattr(support, "lower_bound", 0))
    return torch.distributions.transform_to(support)(x.new_zeros(()))


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
