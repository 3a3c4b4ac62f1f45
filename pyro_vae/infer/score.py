"""Which latent variables of a guide have a score that is zero on average, so that an objective may leave it out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import TransformedDistribution, constraints
from torch.distributions.constraints import Constraint

__all__ = ["score_is_noise"]


def score_is_noise(fn: Any, value: Tensor) -> bool:
    r"""Whether a distribution's score at its own draws has mean zero, and can be had from its log-density.

    The score is :math:`\nabla_\phi \log q_\phi(z)` at a fixed z. It has mean zero where z is reparameterised, has a
    density, and the support of q does not move with the parameters.

    Args:
        fn: the distribution :math:`q_\phi`.
        value: a draw.

    Returns:
        False also where it cannot be told: a flow that only knows the densities of its own draws, for instance.

    Source:
        G. Roeder, Y. Wu, D. Duvenaud (2017), Sticking the Landing: Simple, Lower-Variance Gradient Estimators for
        Variational Inference, section 3.
    """
    if not fn.has_rsample or hasattr(value, "_unquantize"):  # the mark of straight-through draws
        return False
    fn = getattr(fn, "dist", fn)  # what pyro.contrib.zuko wraps
    while True:
        if isinstance(fn, Delta):
            return False
        if isinstance(fn, TransformedDistribution) and _support_is_the_transforms(fn):
            return _flow_is_fixed(fn.base_dist, list(_elements(fn.transforms)), fn, value)
        if hasattr(fn, "transform") and hasattr(fn, "base"):  # a flow of zuko, whose transform goes from z to the base
            return _flow_is_fixed(fn.base, list(_elements(fn.transform.inv)), fn, value)
        if not hasattr(fn, "base_dist"):
            break
        fn = fn.base_dist
    try:
        return not _depends_on_parameters(fn.support)
    except NotImplementedError:
        return False


def _support_is_the_transforms(fn: TransformedDistribution) -> bool:
    """Whether a distribution says nothing better of its support than its transforms do (``LogNormal`` does)."""
    return getattr(type(fn), "support", None) is TransformedDistribution.support


def _flow_is_fixed(base: Any, transforms: list[Any], flow: Any, value: Tensor) -> bool:
    """Whether every transform takes all of the real line, so that where the flow ends cannot move, and has an inverse.

    What a transform says of its codomain holds for all of its domain only: ``AffineTransform`` after ``Uniform`` says
    the real line.
    """
    *inner, last = [base.support, *(transform.codomain for transform in transforms)]
    if not all(map(_is_real, (*inner, *(transform.domain for transform in transforms)))):
        return False
    if _depends_on_parameters(last):
        return False
    try:
        flow.log_prob(value.detach())  # another tensor than the draw, which caches know
    except (NotImplementedError, KeyError):
        return False
    return True


def _elements(transforms: Any) -> Iterator[Any]:
    """The transforms that a composition is made of, in the order from the base to the value."""
    if isinstance(transforms, list | tuple):
        for transform in transforms:
            yield from _elements(transform)
    elif hasattr(transforms, "parts") or hasattr(transforms, "transforms"):  # of torch, of zuko
        yield from _elements(list(transforms.parts if hasattr(transforms, "parts") else transforms.transforms))
    else:
        yield transforms


def _is_real(constraint: Any) -> bool:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint is constraints.real


def _depends_on_parameters(constraint: Any) -> bool:
    """Whether a bound of a support, or of a part of it, has a gradient."""
    if isinstance(constraint, Tensor):
        return constraint.requires_grad
    if isinstance(constraint, Constraint):
        return any(map(_depends_on_parameters, vars(constraint).values()))
    return isinstance(constraint, list | tuple) and any(map(_depends_on_parameters, constraint))
