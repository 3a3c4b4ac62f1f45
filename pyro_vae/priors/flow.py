"""A normalizing flow as prior."""

from __future__ import annotations

from typing import Any

from torch import nn

from .._checks import require_float
from ..flows import FlowDistribution

__all__ = ["FlowPrior"]


class FlowPrior(nn.Module):
    r"""A normalizing flow as prior.

    .. math:: p(z) = \mathcal{N}(f(z) \mid 0, I_D) \left| \det \frac{\partial f}{\partial z} \right|

    Args:
        flow: maps a context, or None, to a distribution over z: ``pyro_vae.autoregressive_flow(D)``, or any flow of
            zuko.
        given: the position, among what is given with the data, of the flow's context ``(B, C)`` (labels, for instance,
            one-hot): a conditional prior. None: the flow has no context.

    Returns:
        ``forward(*given)`` returns a distribution of batch shape ``()``, or ``(B,)`` with a context, and event shape
        ``(D,)``.

    Raises:
        ValueError: the context is not given.
        TypeError: ``flow`` is no module; the context is not a floating-point tensor.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> prior = FlowPrior(pv.autoregressive_flow(2))
        >>> prior().log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])

    Source:
        Chen et al. (2017), Variational Lossy Autoencoder, section 3.2.
    """

    def __init__(self, flow: nn.Module, *, given: int | None = None) -> None:
        super().__init__()
        if not isinstance(flow, nn.Module):
            raise TypeError(
                f"flow: expected a flow of zuko, got {type(flow).__name__}. Make one by "
                "pyro_vae.autoregressive_flow(latent_dim)."
            )
        self.flow = flow
        self.given = given

    def forward(self, *given: Any) -> FlowDistribution:
        """Return p(z), or p(z|y) of the context."""
        return FlowDistribution(self.flow(None if self.given is None else context_of(given, self.given)))


def context_of(given: tuple[Any, ...], position: int) -> Any:
    """Return what a conditional prior depends on; refuse what is missing or no float tensor."""
    if position >= len(given):
        raise ValueError(
            f"given[{position}]: expected what the prior depends on (labels, for instance), got {len(given)} values. "
            "Pass it after x: svi.step(x, y), validation=[(x, y)], vae.sample(n, y)."
        )
    require_float(f"given[{position}]", given[position])
    return given[position]
