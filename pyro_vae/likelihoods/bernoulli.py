"""Black and white, values in {0, 1}."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from .._checks import dtype_of, require_float, require_positive_int
from .._precision import at_least_float32
from .observation import Observation
from .output_bias import data_mean, set_output_bias

__all__ = ["BernoulliLikelihood"]


class BernoulliLikelihood(nn.Module):
    r"""Independent Bernoulli elements, for data in {0, 1}.

    .. math:: p(x \mid z) = \prod_i \pi_i(z)^{x_i} (1 - \pi_i(z))^{1 - x_i}, \qquad
        \operatorname{logit} \pi(z) = \mathrm{network}(z)

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the logits.
        event_dim: number of dimensions of one datum, ``len(E)``: 1 for vectors, 3 for images ``(C, H, W)``.

    Returns:
        ``forward(z)`` returns a distribution of batch shape ``*`` and event shape ``E``.

    Raises:
        ValueError: (from ``log_prob``) data outside {0, 1}, grey pixels say, or of another event shape.
        TypeError: data or latent variables that are not floats of the parameters' dtype.

    Example:
        >>> import torch
        >>> likelihood = BernoulliLikelihood(nn.Linear(2, 784))
        >>> p = likelihood(torch.zeros(5, 2))
        >>> p.log_prob(torch.ones(5, 784)).shape
        torch.Size([5])

    Source:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, equation 11.
    """

    def __init__(self, network: nn.Module, *, event_dim: int = 1) -> None:
        super().__init__()
        self.network = network
        self.event_dim = require_positive_int("event_dim", event_dim)

    def forward(self, z: Tensor) -> Observation:
        """p(x|z)."""
        require_float("z", z, dtype_of(self.network))
        logits = at_least_float32(self.network(z))
        return Observation(
            dist.Bernoulli(logits=logits),
            self.event_dim,
            (
                "values in {0, 1} for BernoulliLikelihood",
                "Binarise it (pyro_vae.data.binarise) or use ContinuousBernoulliLikelihood.",
            ),
        )

    def initialise_output_bias(self, x: Tensor) -> None:
        """Start from p(x|z) = the mean of ``x`` ``(N, *E)``, which training need not find then (1 nat on MNIST)."""
        mean = data_mean(x, within_unit_interval=True).clamp(1e-3, 1 - 1e-3)
        set_output_bias(self.network, mean.logit())
