"""A likelihood or posterior whose network also sees what is given: a conditional VAE without a subclass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import as_int, require_float, require_mask, require_tensor

__all__ = ["Conditional"]


class Conditional(nn.Module):
    """A likelihood p(x|z, y) or posterior q(z|x, y) whose network's input is joined with what is given.

    A prior needs no such help: any module that maps ``y`` to a distribution over z is a conditional prior,
    ``DiagonalNormalPosterior(MLP(C, 2 * D))`` for instance.

    Args:
        part: a likelihood or posterior over vectors; the input of its network has F + C elements, where F is the
            number of elements of z or x and C that of the tensors joined.
        given: the positions, among what is given with the data, of the tensors to join; None joins all. With labels
            first and exposures second, ``given=(0,)`` joins the labels. ``part`` gets everything given in any case.
        event_dim: the dimensions of one input: 1 for a vector; 3 for an image (C, H, W), to which images given
            ``(B, C_i, H, W)`` are joined as further channels, and vectors ``(B, C_i)`` as constant ones.

    Returns:
        ``forward(input, *given, mask=None)`` joins ``input`` ``(*, F)`` with tensors given ``(B, C_i)`` along the last
        dimension (images along that of the channels) and returns what ``part`` returns. Where a latent variable is
        summed out, ``input`` or a tensor given has further dimensions to the left; the other is repeated along them.

    Raises:
        TypeError: a tensor to join is not a float tensor of the dtype of ``input``.
        ValueError: nothing to join is given; a tensor to join has fewer than two dimensions, such as class numbers
            ``(B,)``, or its rows do not belong to those of ``input``; ``given`` is not a sequence of positions.

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

    def __init__(self, part: Callable[..., Any], *, given: Sequence[int] | None = None, event_dim: int = 1) -> None:
        super().__init__()
        if not callable(part) or isinstance(part, type):
            raise TypeError(f"part: expected a likelihood or posterior, got {part!r}.")
        self.part: Any = part
        self.given = _require_positions(given)
        if event_dim not in (1, 3):
            raise ValueError(f"event_dim: expected 1, for vectors, or 3, for images (C, H, W), got {event_dim!r}.")
        self.event_dim = int(event_dim)
        if hasattr(part, "event_shape"):
            self.event_shape = part.event_shape

    def initialize_output_bias(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> None:
        """Set the output bias of the likelihood inside; pass what is given to a likelihood with exposures."""
        self.part.initialize_output_bias(x, *given, mask=mask)

    def forward(self, input: Tensor, *given: Any, mask: Tensor | None = None) -> Any:
        """Return the distribution of ``part`` at the joined input.

        Args:
            input: x or z, ``(*, F)``.
            *given: what is given.
            mask: True where x is observed, of the shape of x: it is joined behind x, which has 0 where it is missing.
                The network then has 2 * F + C inputs.
        """
        require_tensor("input", input)
        if mask is not None:
            require_mask("mask", mask, input)
            input = torch.cat([input.where(mask, torch.zeros_like(input)), mask.to(input.dtype)], -self.event_dim)
        positions = range(max(len(given), 1)) if self.given is None else self.given
        joined = [input]
        for i in positions:
            if i >= len(given):
                got = {0: "nothing", 1: "1 value"}.get(len(given), f"{len(given)} values")
                raise ValueError(
                    f"given[{i}]: expected what Conditional joins with its input (labels, for instance), got {got}. "
                    "Pass it after x: svi.step(x, y), validation=[(x, y)], vae.sample(n, y)."
                )
            joined.append(_columns(f"given[{i}]", given[i], input, self.event_dim))
        d = self.event_dim
        rows = torch.broadcast_shapes(*[tensor.shape[:-d] for tensor in joined])
        return self.part(torch.cat([tensor.expand(*rows, *tensor.shape[-d:]) for tensor in joined], -d), *given)


def _columns(name: str, value: Any, input: Tensor, event_dim: int) -> Tensor:
    """Return what is given, ``(B, C)`` or ``(B, C, H, W)``, with leading dimensions that broadcast with the input's."""
    require_tensor(name, value)
    encode = "Encode classes (torch.nn.functional.one_hot(y, num_classes).float())"
    if value.ndim < 2:
        raise ValueError(
            f"{name}: expected shape (B, C), got {tuple(value.shape)}. {encode}, and write numbers as y[:, None]. "
            "To join only some of what is given, name their positions: Conditional(part, given=(0,))."
        )
    if not value.is_floating_point():
        raise TypeError(
            f"{name}: expected floating-point values ({input.dtype}), got {value.dtype}. "
            f"{encode}, and convert numbers: y.to({input.dtype})."
        )
    require_float(name, value, input.dtype)
    leading = input.shape[: input.ndim - event_dim]
    if event_dim == 3:
        if value.ndim == 3:
            raise ValueError(
                f"{name}: expected vectors (B, C) or images (B, C, H, W) to join with images, got "
                f"{tuple(value.shape)}. Write images of one channel as y[:, None]."
            )
        value = value[..., None, None] if value.ndim == 2 else value
    sizes = (value.shape[-event_dim], *input.shape[input.ndim - event_dim + 1 :])
    try:
        if max(value.ndim, input.ndim) > 1 + event_dim:  # all values of what is summed out, (C, 1, C)
            torch.broadcast_shapes(value.shape[:-event_dim], leading)
            return value.expand(*value.shape[:-event_dim], *sizes)
        return value.expand(*leading, *sizes)
    except RuntimeError:
        sides = f" and height and width {tuple(sizes[1:])}" if event_dim == 3 else ""
        raise ValueError(
            f"{name}: expected rows that broadcast to {tuple(leading)}, the leading dimensions of "
            f"the input{sides}, got shape {tuple(value.shape)}. Give as many rows as there are data."
        ) from None


def _require_positions(given: Any) -> tuple[int, ...] | None:
    """Return the positions as a tuple, or None; refuse what is no sequence of different integers of at least 0."""
    if given is None:
        return None
    positions = [as_int(i) for i in given] if isinstance(given, Sequence) else []
    valid = tuple(i for i in positions if i is not None and i >= 0)
    if not valid or len(set(valid)) < len(positions):
        raise ValueError(
            f"given: expected different positions in what is given, each 0 or more, or None, got {given!r}. "
            "Write given=(0,) to join the first alone."
        )
    return valid
