"""A mixture of normal distributions as prior."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._checks import require_positive_int, require_probs, require_tensor
from .flow import context_of

__all__ = ["MixturePrior"]


class MixturePrior(nn.Module):
    r"""A mixture of normal distributions with diagonal covariances.

    .. math:: p(z) = \sum_{k=1}^{K} \pi_k \, \mathcal{N}(z \mid \mu_k, \operatorname{diag} \sigma_k^2)

    Weights, means and scales are parameters; the means start at draws of the standard normal.

    Args:
        latent_dim: :math:`D`.
        num_components: :math:`K`.
        network: maps what is given, ``(B, C)``, to the logits ``(B, K)`` of the weights: a conditional prior p(z|y).
            None: the weights are parameters.
        given: the position of the network's input among what is given with the data.

    Returns:
        ``forward(*given)`` returns a distribution of batch shape ``()``, or ``(B,)`` with a network, and event shape
        ``(D,)``. It has no reparameterized sampler.

    Raises:
        ValueError: ``latent_dim`` or ``num_components`` is no integer of at least 1; the network's input is not given,
            or its output is not K wide.

    Example:
        >>> prior = MixturePrior(2, num_components=10)
        >>> prior().log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])

    Source:
        Tomczak and Welling (2018), VAE with a VampPrior, section 3 ("mixture of Gaussians").
    """

    def __init__(
        self, latent_dim: int, num_components: int, *, network: nn.Module | None = None, given: int = 0
    ) -> None:
        super().__init__()
        latent_dim = require_positive_int("latent_dim", latent_dim)
        num_components = require_positive_int("num_components", num_components)
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))
        self.weights = Weights(num_components, network, given)

    def initialize(self, z: Tensor) -> None:
        """Put the means on rows of ``z``, chosen at random, and the scales to what K components need to cover them.

        Args:
            z: ``(N, D)``, draws of the aggregate posterior for instance.
        """
        require_tensor("z", z)
        components, latent_dim = self.loc.shape
        if z.ndim != 2 or z.shape[1] != latent_dim or not len(z):
            raise ValueError(f"z: expected shape (N, {latent_dim}), got {tuple(z.shape)}.")
        with torch.no_grad():
            self.loc.copy_(z[torch.randint(len(z), (components,), device=z.device)])
            spread = z.std(0, correction=0).clamp(min=1e-3) * components ** (-1 / (latent_dim + 4))
            self.log_scale.copy_(spread.log().expand_as(self.log_scale))

    def set_components(self, weights: Any, loc: Any, scale: Any) -> None:
        """Set the components to those of a mixture that was fitted elsewhere.

        A fit ``g`` of scikit-learn's ``GaussianMixture(K, covariance_type="diag")`` has ``g.weights_``, ``g.means_``
        and ``g.covariances_ ** 0.5``.

        Args:
            weights: ``(K,)``, probabilities above 0 that sum to 1; tensor or array, like the others.
            loc: ``(K, D)``, the means.
            scale: ``(K, D)``, the standard deviations.

        Raises:
            ValueError: one of them has another shape or values that it cannot have; the weights come from a network.
        """
        if self.weights.network is not None:
            raise ValueError("weights: expected a prior whose weights are parameters, got one with a network for them.")
        shape = tuple(self.loc.shape)
        weights = require_probs("weights", weights, shape[0])
        loc, scale = (torch.as_tensor(value, dtype=torch.float64) for value in (loc, scale))
        for name, value, allowed, numbers in (
            ("loc", loc, loc.isfinite(), "finite numbers"),
            ("scale", scale, scale.isfinite() & (scale > 0), "finite numbers above 0"),
        ):
            if tuple(value.shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}, a row for each component, got {tuple(value.shape)}.")
            if not allowed.all():
                raise ValueError(f"{name}: expected {numbers}, got {value[~allowed][0].item():g}.")
        with torch.no_grad():
            self.loc.copy_(loc)
            self.log_scale.copy_(scale.log())
            self.weights.logits.copy_(weights.log())

    def forward(self, *given: Any) -> dist.MixtureSameFamily:
        """Return p(z), or p(z|y)."""
        components = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return mixture(self.weights(*given), components)


class Weights(nn.Module):
    """The logits of a mixture's weights: parameters, or what a network makes of what is given."""

    def __init__(self, num_components: int, network: nn.Module | None, given: int) -> None:
        super().__init__()
        self.num_components = num_components
        self.given = given
        self.network = network
        if network is None:
            self.logits = nn.Parameter(torch.zeros(num_components))

    def forward(self, *given: Any) -> Tensor:
        """Return the logits, ``(K,)`` or ``(B, K)``."""
        if self.network is None:
            return self.logits
        logits: Tensor = self.network(context_of(given, self.given))
        if logits.shape[-1] != self.num_components:
            raise ValueError(
                f"network: expected an output width of {self.num_components}, the number of components, got "
                f"{logits.shape[-1]}."
            )
        return logits


def mixture(logits: Tensor, components: Any) -> dist.MixtureSameFamily:
    """Return the mixture of K components (batch shape ``(K,)``) with weights of these logits, ``(*, K)``."""
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), components.expand(logits.shape))
