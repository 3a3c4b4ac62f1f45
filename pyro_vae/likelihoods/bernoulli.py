"""Binary data, values in {0, 1}."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from .._checks import require_shape
from .observation import Observation, network_output
from .output_bias import mean_over_data, observed_data, set_output_bias

__all__ = ["BernoulliLikelihood"]


class BernoulliLikelihood(nn.Module):
    r"""Independent Bernoulli elements, for data in {0, 1}.

    .. math:: p(x \mid z) = \prod_i \pi_i(z)^{x_i} (1 - \pi_i(z))^{1 - x_i}, \qquad
        \operatorname{logit} \pi(z) = \mathrm{network}(z)

    Args:
        network: any module that maps ``(*, D)`` to ``(*, *E)``, the logits.
        event_shape: ``E``, the shape of one datum, for instance ``(1, 28, 28)``; None means a vector, as long as the
            network's output.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``E``.

    Raises:
        ValueError: ``event_shape`` is not a sequence of positive integers, or not the shape of the network's output;
            (from ``log_prob``) data outside {0, 1}, such as grey pixels, or of another event shape.
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

    def __init__(self, network: nn.Module, *, event_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.network = network
        self.event_shape = require_shape("event_shape", event_shape)

    def forward(self, z: Tensor, *given: Any) -> Observation:
        """Return p(x|z); ``given`` is not used."""
        (logits,) = network_output(self.network, z, self.event_shape)
        return Observation(
            dist.Bernoulli(logits=logits),
            self.event_shape,
            (
                "values in {0, 1} for BernoulliLikelihood",
                "Binarize it (pyro_vae.data.binarize) or use ContinuousBernoulliLikelihood.",
            ),
            logits.dtype,
        )

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the network's output bias so that E[x|z] starts at the mean of ``x`` ``(N, *E)``.

        On MNIST this saves about 1 nat of training.
        """
        mean = mean_over_data(observed_data(x, mask, low=0.0, high=1.0)).clamp(1e-3, 1 - 1e-3)
        set_output_bias(self.network, mean.logit())
