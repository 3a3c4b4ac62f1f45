"""Classes 0, 1, ..., C - 1, such as grey levels or answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._checks import require_positive_int, require_shape
from .observation import Observation, network_output
from .output_bias import observed_data, set_output_bias, share_of_data

__all__ = ["CategoricalLikelihood"]


class CategoricalLikelihood(nn.Module):
    r"""Independent categorical elements, for data in {0, 1, ..., C - 1}.

    .. math:: p(x \mid z) = \prod_i \frac{e^{f_{x_i, i}(z)}}{\sum_c e^{f_{c, i}(z)}}, \qquad f(z) = \mathrm{network}(z)

    Data are class numbers as floats; ``mean`` is the mean of the class numbers, which is of use where they are ordered.

    Args:
        network: any module that maps ``(*, D)`` to ``(*, C * E_1, E_2, ...)``: along the first dimension of ``E`` the
            logits of class 0 for all elements, then those of class 1, and so on.
        num_classes: C.
        event_shape: ``E``, the shape of one datum, for instance ``(1, 28, 28)``; None means a vector, as long as the
            network's output.

    Returns:
        ``forward(z, *given)`` returns a distribution of batch shape ``*`` and event shape ``E``.

    Raises:
        ValueError: ``num_classes`` is below 1; ``event_shape`` is not a sequence of positive integers; the network's
            output is not C times as long; (from ``log_prob``) data that are not class numbers.
        TypeError: data or latent variables that are not floats of the parameters' dtype.

    Example:
        >>> likelihood = CategoricalLikelihood(nn.Linear(2, 4 * 3), num_classes=4)
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.tensor([0.0, 1.0, 3.0])).shape
        torch.Size([5])

    Source:
        van den Oord, Kalchbrenner and Kavukcuoglu (2016), Pixel recurrent neural networks, section 3.3.
    """

    def __init__(self, network: nn.Module, num_classes: int, *, event_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.network = network
        self.num_classes = require_positive_int("num_classes", num_classes)
        self.event_shape = require_shape("event_shape", event_shape)

    def forward(self, z: Tensor, *given: Any) -> Observation:
        """Return p(x|z); ``given`` is not used."""
        logits = torch.stack(network_output(self.network, z, self.event_shape, self.num_classes), -1)
        return Observation(
            FloatCategorical(logits=logits),
            self.event_shape,
            (
                f"class numbers 0 to {self.num_classes - 1} for CategoricalLikelihood",
                "Number the classes from 0, as floats, or raise num_classes.",
            ),
            logits.dtype,
        )

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the network's output bias to the log of the classes' frequencies in ``x`` ``(N, *E)``.

        A class that does not occur counts as half a datum.
        """
        x = observed_data(x, mask, low=0.0, high=self.num_classes - 1.0)
        least = 0.5 / (~x.isnan()).sum(0).clamp(min=1)  # half a datum
        shares = (share_of_data(x, c).maximum(least) for c in range(self.num_classes))
        set_output_bias(self.network, *(share.log() for share in shares))


class FloatCategorical(dist.Categorical):
    """Pyro's categorical distribution with class numbers as floats, and their moments."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return class numbers as floats."""
        return super().sample(torch.Size(sample_shape)).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability. Without validation, what is no class number counts as a near one."""
        if self._validate_args:
            self._validate_sample(value)
        return super().log_prob(value.nan_to_num(0.0).clamp(0, self.logits.shape[-1] - 1))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all class numbers as floats."""
        return torch.distributions.Categorical.enumerate_support(self, expand).to(self.logits.dtype)

    @property
    def mean(self) -> Tensor:
        """The mean of the class numbers."""
        return (self.probs * self._classes()).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the class numbers."""
        return (self.probs * (self._classes() - self.mean[..., None]).square()).sum(-1)

    def _classes(self) -> Tensor:
        return torch.arange(self.logits.shape[-1], dtype=self.logits.dtype, device=self.logits.device)
