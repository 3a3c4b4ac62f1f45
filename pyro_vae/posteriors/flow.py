"""A normal posterior made more flexible by a normalizing flow."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributions import Independent, Normal

from .._checks import as_int, require_positive_number
from .._precision import at_least_float32
from ..flows import FlowDistribution
from .network_input import network_input

__all__ = ["FlowPosterior"]


class FlowPosterior(nn.Module):
    r"""A normalizing flow on top of a normal posterior with diagonal covariance.

    .. math:: z = f^{-1}(u; c(x)), \qquad u \sim \mathcal{N}(\mu(x), \operatorname{diag} \sigma(x)^2), \qquad
        (\mu, v, c) = \mathrm{network}(x), \quad \sigma = \sigma_{\min} + e^{v / 2}

    It has no mean in closed form: ``vae.reconstruct(x, num_particles=...)`` averages over draws. ``TraceSTL_ELBO``
    inverts the flow at each step, which takes D passes of an inverse autoregressive flow; ``Trace_ELBO`` does not.

    Args:
        network: any module that maps ``(*, *E)`` to ``(*, 2 * D + C)``: means, log-variances :math:`v`, and the flow's
            context.
        flow: maps a context ``(*, C)`` to a flow of zuko, whose transform is used:
            ``pyro_vae.autoregressive_flow(D, context_dim=C, inverse=True)``, which draws in one pass.
        context_dim: :math:`C`; 0 for a flow without context.
        min_scale: :math:`\sigma_{\min} > 0`, which keeps the density finite.

    Returns:
        ``forward(x, *given, mask=None)`` returns a distribution of batch shape ``*`` and event shape ``(D,)``.

    Raises:
        ValueError: the network's output is not ``2 * D + C`` wide; ``context_dim`` or ``min_scale`` is out of range;
            a flow of ``autoregressive_flow`` was made for another :math:`D` or :math:`C`.
        TypeError: ``x`` is not a floating-point tensor; ``flow`` is no flow of zuko.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> flow = pv.autoregressive_flow(3, context_dim=8, inverse=True)
        >>> posterior = FlowPosterior(nn.Linear(784, 2 * 3 + 8), flow, context_dim=8)
        >>> posterior(torch.zeros(5, 784)).rsample().shape
        torch.Size([5, 3])

    Source:
        Kingma et al. (2016), Improved Variational Inference with Inverse Autoregressive Flow; Rezende and Mohamed
        (2015), Variational Inference with Normalizing Flows.
    """

    def __init__(self, network: nn.Module, flow: nn.Module, *, context_dim: int = 0, min_scale: float = 1e-4) -> None:
        super().__init__()
        if not hasattr(flow, "transform"):
            raise TypeError(
                f"flow: expected a flow of zuko, which has a transform, got {type(flow).__name__}. Make one by "
                "pyro_vae.autoregressive_flow(latent_dim, inverse=True)."
            )
        size = as_int(context_dim)
        if size is None or size < 0:
            raise ValueError(f"context_dim: expected an integer of at least 0, got {context_dim!r}.")
        of_flow = getattr(flow, "context_dim", size)
        if of_flow != size:
            raise ValueError(
                f"context_dim: expected {of_flow}, that of the flow, got {size}. Give FlowPosterior and "
                "autoregressive_flow the same context_dim."
            )
        self.network = network
        self.flow: Any = flow
        self.context_dim = size
        self.min_scale = require_positive_number("min_scale", min_scale)

    def forward(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> FlowDistribution:
        """Return q(z|x); ``given`` is not used. With a ``mask``, the network's input is x and the mask, joined."""
        import zuko  # the extra ``flows``; there, since the flow came from it

        parameters = at_least_float32(self.network(network_input(self.network, x, mask)))
        latent_dim, rest = divmod(parameters.shape[-1] - self.context_dim, 2)
        if rest or latent_dim < 1:
            raise ValueError(
                f"network: expected an output width of 2 * latent_dim + {self.context_dim} (means, log-variances, "
                f"context), got {parameters.shape[-1]}. Give the network that many outputs."
            )
        of_flow = getattr(self.flow, "latent_dim", latent_dim)
        if of_flow != latent_dim:
            raise ValueError(
                f"network: expected an output width of {2 * of_flow + self.context_dim}, 2 * latent_dim + context_dim "
                f"of the flow, got {parameters.shape[-1]}. Give the network that many outputs, or make the flow for "
                f"latent_dim={latent_dim}."
            )
        loc, log_variance, context = parameters.split([latent_dim, latent_dim, self.context_dim], dim=-1)
        base = Independent(Normal(loc, self.min_scale + (log_variance / 2).exp()), 1)
        transform = self.flow.transform(context if self.context_dim else None)
        return FlowDistribution(zuko.distributions.NormalizingFlow(transform, base))
