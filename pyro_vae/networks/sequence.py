"""Networks over sequences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._checks import require_float, require_positive_int

__all__ = ["BackwardRNN"]


class BackwardRNN(nn.Module):
    r"""A recurrent network that reads sequences from their end: :math:`h_t = f(x_t, h_{t+1})`, so that
    :math:`h_t` depends on :math:`x_t, \ldots, x_T`.

    Each sequence is read from its own last step; the padding behind it is not read.

    Args:
        in_features: width of a step of the sequence.
        hidden_dim: H.
        cell: ``nn.RNN``, ``nn.GRU``, ``nn.LSTM`` or a function of (input size, hidden size, ``batch_first=True``) that
            returns such a module.

    Returns:
        ``forward(x, lengths=None)`` maps ``(B, T, in_features)`` and integers ``(B,)`` to ``(B, T, H)``. What it
        returns beyond a sequence's length means nothing.

    Raises:
        ValueError: a width below 1; (from ``forward``) sequences of another shape.
        TypeError: input that is not floats of the parameters' dtype.

    Example:
        >>> BackwardRNN(88, hidden_dim=16)(torch.zeros(5, 7, 88), torch.tensor([7, 3, 5, 1, 7])).shape
        torch.Size([5, 7, 16])

    Source:
        Krishnan, Shalit and Sontag (2017), Structured Inference Networks for Nonlinear State Space Models, figure 2.
    """

    def __init__(self, in_features: int, *, hidden_dim: int, cell: Callable[..., nn.RNNBase] = nn.GRU) -> None:
        super().__init__()
        self.in_features = require_positive_int("in_features", in_features)
        self.hidden_dim = require_positive_int("hidden_dim", hidden_dim)
        self.rnn = cell(self.in_features, self.hidden_dim, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map ``(B, T, in_features)`` to ``(B, T, H)``."""
        require_float("x", x, self.rnn.weight_hh_l0.dtype)  # type: ignore[arg-type]
        if x.ndim != 3 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x: expected sequences (B, T, {self.in_features}) for BackwardRNN({self.in_features}), got "
                f"{tuple(x.shape)}. Flatten each step to one vector (x.flatten(2)) or set in_features."
            )
        steps = torch.arange(x.shape[1], device=x.device)
        last = torch.full_like(x[:, 0, 0], x.shape[1], dtype=torch.long) if lengths is None else lengths
        # Reversed within its length, a sequence begins at its end; the padding stays behind.
        real = steps < last[:, None]
        order = torch.where(real, last[:, None] - 1 - steps, steps)[..., None]
        x = x.where(real[..., None], torch.zeros_like(x))
        h, _ = self.rnn(x.gather(1, order.expand(x.shape)))
        return h.gather(1, order.expand(h.shape))
