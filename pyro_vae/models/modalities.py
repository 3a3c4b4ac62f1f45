"""A batch of several modalities, any of which a datum may lack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from .._checks import require_float, require_rows, require_tensor

__all__ = ["on_events", "present", "read_mask", "read_modalities"]


def read_modalities(x: Any, likelihoods: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the modalities of a batch, in the order of the story's, without those that are None; refuse others."""
    if not isinstance(x, Mapping):
        names = ", ".join(f"{name!r}: ..." for name in likelihoods)
        raise TypeError(f"x: expected a dictionary of modalities, got {type(x).__name__}. Write {{{names}}}.")
    _require_names("x", x, likelihoods)
    read = {name: x[name] for name in likelihoods if x.get(name) is not None}
    if not read:
        raise ValueError(
            f"x: expected at least one of the modalities {_listed(likelihoods)}, which says how many data there are, "
            "got none. A modality that all data lack may be handed over with a mask that is False."
        )
    first = next(iter(read))
    for name, value in read.items():
        require_float(f"x[{name!r}]", value, dtype)
        event_shape = getattr(likelihoods[name], "event_shape", "unknown")  # None is a vector, in our likelihoods
        event_dim = value.ndim - 1 if event_shape == "unknown" else 1 if event_shape is None else len(event_shape)
        if value.ndim != 1 + event_dim or not len(value):
            raise ValueError(
                f"x[{name!r}]: expected a batch (B, *E) of at least one datum with {1 + event_dim} dimensions, got "
                f"shape {tuple(value.shape)}. Give a single datum as a batch of one, and numbers as a column (B, 1)."
            )
        require_rows(f"x[{name!r}]", value, len(read[first]), f"as in x[{first!r}]")
    return read


def read_mask(x: Mapping[str, Tensor], mask: Any, missing: bool) -> dict[str, Tensor | None]:
    """Return which data have each modality, ``(B,)``; None where all do.

    Args:
        x: modalities, as ``read_modalities`` returns them.
        mask: True where a datum has a modality, ``(B,)`` each, for some of them; or None.
        missing: whether NaN in all elements of a datum means that it lacks the modality.
    """
    if mask is not None and not isinstance(mask, Mapping):
        raise TypeError(f"mask: expected a dictionary of masks (B,), one for a modality, got {type(mask).__name__}.")
    _require_names("mask", mask or {}, x)
    shown: dict[str, Tensor | None] = {}
    for name, value in x.items():
        rows = (mask or {}).get(name)
        if rows is not None:
            require_tensor(f"mask[{name!r}]", rows)
            if rows.dtype != torch.bool or rows.shape != value.shape[:1]:
                raise ValueError(
                    f"mask[{name!r}]: expected a boolean tensor of shape {(len(value),)}, True for the data that have "
                    f"this modality, got {rows.dtype} of shape {tuple(rows.shape)}. A modality is there as a whole, or "
                    "missing."
                )
        if missing:
            there = ~value.reshape(len(value), -1).isnan().all(1)
            rows = there if rows is None else rows & there
        shown[name] = rows
        if is_validation_enabled():
            _require_finite(name, value, rows, missing)
    return shown


def present(x: Tensor, observed: Tensor | None) -> Tensor:
    """Return ``x`` ``(B, *E)``, 0 for the data that lack it."""
    if observed is None:
        return x
    return x.where(observed.reshape(-1, *(1,) * (x.ndim - 1)), torch.zeros_like(x))


def on_events(observed: Tensor, event_shape: torch.Size) -> Tensor:
    """Return ``observed`` ``(B,)`` for each element, ``(B, *E)``."""
    return observed.reshape(-1, *(1,) * len(event_shape)).expand(-1, *event_shape)


def _require_names(argument: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(
            f"{argument}: expected modalities among {_listed(known)}, got {_listed(unknown)}. Leave it out, or build "
            "the model with a likelihood and an expert for it."
        )


def _require_finite(name: str, x: Tensor, observed: Tensor | None, missing: bool) -> None:
    """Refuse what is not finite in data that have the modality."""
    wrong = ~present(x, observed).isfinite()
    if not wrong.any():
        return
    fix = (
        "A modality is missing as a whole: write NaN into all of its elements, or into none."
        if missing
        else "Say what is missing by mask=, or build the model with missing=True, to which NaN means missing."
    )
    raise ValueError(f"x[{name!r}]: expected finite values, got {x[wrong][0].item()}. {fix}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
