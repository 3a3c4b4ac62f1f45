"""Classes as latent variables: labels that may be unknown, one-hot vectors, and how many values can be summed out."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from .._checks import as_int, require_positive_int, require_tensor

__all__ = [
    "MOST_VALUES",
    "Labels",
    "class_prior",
    "full_like",
    "one_hot",
    "read_labels",
    "require_values",
    "sample_unless_known",
]

MOST_VALUES = 10_000  # that are summed out: a batch is decoded once for each


def one_hot(y: Tensor, classes: int, dtype: torch.dtype | None) -> Tensor:
    """Return one-hot vectors ``(*, C)`` of class numbers ``(*,)``; zeros for a number that is no class."""
    return (y[..., None] == torch.arange(classes, device=y.device)).to(dtype or torch.get_default_dtype())


class Labels(NamedTuple):
    """Classes of data that are known for some, ``(B,)`` each."""

    y: Tensor  # a class everywhere, any one where it is not known
    known: Tensor
    valid: Tensor  # False where a label is neither a class nor -1


def read_labels(name: str, y: Any, classes: int) -> Labels:
    """Return labels as 64-bit integers; refuse what is none. Their values are looked at where Pyro validates."""
    require_tensor(name, y)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"{name}: expected class numbers (torch.int64), got {y.dtype}. Convert them: {name}.long().")
    if y.ndim != 1:
        raise ValueError(
            f"{name}: expected class numbers of shape (B,), got {tuple(y.shape)}. "
            f"Turn one-hot vectors into numbers ({name}.argmax(-1)), and a column into a vector ({name}[:, 0])."
        )
    y = y.long()  # before comparing: -1 is no number of 8 unsigned bits
    valid = (y >= -1) & (y < classes)
    if is_validation_enabled() and not valid.all():
        raise ValueError(
            f"{name}: expected class numbers from 0 to {classes - 1}, or -1 for unknown, got {y[~valid][0].item()}. "
            "Number the classes from 0, and write -1 where there is none, or build the model with more classes."
        )
    return Labels(y.clamp(0, classes - 1), y >= 0, valid)


def full_like(drawn: Tensor, y: Any) -> Any:
    """Return ``y`` for each of the data that ``drawn`` is for, where it is one number (a numpy one too)."""
    number = as_int(y)
    return y if number is None else torch.full_like(drawn, number)


def class_prior(logits: Tensor, labels: Labels | None = None) -> dist.Categorical:
    """Return p(y). Its density is NaN where a label is no label, so that no step is taken with it."""
    if labels is None:
        return dist.Categorical(logits=logits)
    return dist.Categorical(logits=torch.where(labels.valid[:, None], logits, torch.nan))


def sample_unless_known(name: str, p: Any, labels: Labels | None) -> Tensor:
    """``pyro.sample(name, p, obs=y, obs_mask=known)``, also in float64.

    The site that Pyro makes of both parts has a density of float32, which ``TraceEnum_ELBO`` does not add to others.
    """
    if labels is None:
        return pyro.sample(name, p)
    with poutine.mask(mask=labels.known):
        pyro.sample(f"{name}_observed", p, obs=labels.y)
    with poutine.mask(mask=~labels.known):
        drawn = pyro.sample(f"{name}_unobserved", p)
    y = torch.where(labels.known, labels.y, drawn)
    both = dist.Delta(y, log_density=torch.zeros_like(y, dtype=p.logits.dtype))
    return pyro.sample(name, both, obs=y, infer={"_deterministic": True})


def require_values(name: str, value: Any) -> int:
    """Return the number of values of a variable that is summed out; refuse too many."""
    number = require_positive_int(name, value)
    if number > MOST_VALUES:
        raise ValueError(
            f"{name}: expected at most {MOST_VALUES:,}, since every value is summed out, got {number:,}. Take fewer."
        )
    return number
