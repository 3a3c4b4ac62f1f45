"""A likelihood or posterior whose network also sees what is given: a conditional VAE without a subclass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import require_float, require_tensor

__all__ = ["Conditional"]


class Conditional(nn.Module):
    """A likelihood p(x|z, y) or posterior q(z|x, y) whose network's input is joined with what is given.

    A prior needs no such help: any module that maps ``y`` to a distribution over z is a conditional prior,
    ``DiagonalNormalPosterior(MLP(C, 2 * D))`` for instance.

    Args:
        part: a likelihood or posterior over vectors; the input of its network has F + C elements, where F is the
            number of elements of z or x and C that of everything given.

    Returns:
        ``forward(input, *given)`` joins ``input`` ``(*, F)`` with each tensor given ``(B, C_i)`` along the last
        dimension and returns what ``part`` returns.

    Raises:
        TypeError: a tensor given is not a float tensor of the dtype of ``input``.
        ValueError: a tensor given has fewer than two dimensions, such as class numbers ``(B,)``, or its rows do not
            belong to those of ``input``.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.Conditional(pv.BernoulliLikelihood(pv.MLP(2 + 10, 784, hidden_dims=(8,)))),
        ...     pv.Conditional(pv.DiagonalNormalPosterior(pv.MLP(784 + 10, 2 * 2, hidden_dims=(8,)))),
        ... )
        >>> y = nn.functional.one_hot(torch.tensor([3, 5]), 10).float()
        >>> vae.reconstruct(torch.zeros(2, 784), y).shape, vae.sample(2, y).shape
        (torch.Size([2, 784]), torch.Size([2, 784]))

    Source:
        Sohn, Lee and Yan (2015), Learning structured output representation using deep conditional generative models.
    """

    def __init__(self, part: Callable[..., Any]) -> None:
        super().__init__()
        if not callable(part) or isinstance(part, type):
            raise TypeError(f"part: expected a likelihood or posterior, got {part!r}.")
        self.part: Any = part
        if hasattr(part, "event_shape"):
            self.event_shape = part.event_shape

    def initialize_output_bias(self, x: Tensor) -> None:
        """Set the output bias of the likelihood inside."""
        self.part.initialize_output_bias(x)

    def forward(self, input: Tensor, *given: Any) -> Any:
        """Return the distribution of ``part`` at the joined input."""
        require_tensor("input", input)
        joined = [input]
        for i, value in enumerate(given):
            require_float(f"given[{i}]", value, input.dtype)
            if value.ndim < 2:
                raise ValueError(
                    f"given[{i}]: expected shape (B, C), got {tuple(value.shape)}. Encode classes "
                    "(torch.nn.functional.one_hot(y, num_classes).float()), and write numbers as y[:, None]."
                )
            try:
                joined.append(value.expand(*input.shape[:-1], value.shape[-1]))
            except RuntimeError:
                raise ValueError(
                    f"given[{i}]: expected rows that broadcast to {tuple(input.shape[:-1])}, the leading dimensions of "
                    f"the input, got shape {tuple(value.shape)}. Give as many rows as there are data."
                ) from None
        return self.part(torch.cat(joined, -1), *given)
