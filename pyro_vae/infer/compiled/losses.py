"""What an objective returns, a number or several, as tensors and as numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.infer import TraceTailAdaptive_ELBO
from pyro.ops.provenance import detach_provenance
from torch import Tensor

__all__ = ["Loss", "as_tensors", "is_a_bound", "marked", "numbers", "parts"]

Loss = Any  # a number or 0-dim tensor, or a tuple of them


def is_a_bound(objective: Any) -> bool:
    """Whether an objective's loss is a number that says something; ``TraceTailAdaptive_ELBO`` gives infinity."""
    return not isinstance(getattr(objective, "__self__", None), TraceTailAdaptive_ELBO)


def parts(loss: Any) -> list[Tensor]:
    """The loss, or several, as a list."""
    return list(loss) if isinstance(loss, tuple) else [loss]


def as_tensors(loss: Loss, params: dict[str, Tensor]) -> Any:
    """A loss that Pyro gives as a number (or several) as 0-dim tensors on the parameters' device."""
    if isinstance(loss, tuple):
        return type(loss)(as_tensors(part, params) for part in loss)
    if isinstance(loss, Tensor):
        return detach_provenance(loss).detach()
    device = next(iter(params.values())).device if params else torch.device("cpu")
    return torch.tensor(loss, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)


def numbers(loss: Any) -> Any:
    """The loss, or several, as Python numbers."""
    if isinstance(loss, tuple):
        return type(loss)(numbers(part) for part in loss)
    return loss.item() if isinstance(loss, Tensor) else loss


def marked(loss: Tensor, ok: Tensor) -> Tensor:
    """The loss, but NaN where it is finite and a gradient is not."""
    return torch.where(ok | ~torch.isfinite(loss), loss, math.nan)
