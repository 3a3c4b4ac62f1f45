"""The variational mixture of posteriors as prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._checks import as_int, require_distribution, require_mask, require_rows, require_tensor
from .mixture import Weights, mixture

__all__ = ["VampPrior"]


class VampPrior(nn.Module):
    r"""A mixture of the posteriors of pseudo-inputs: the prior that is nearest to the aggregate posterior.

    .. math:: p(z) = \sum_{k=1}^{K} \pi_k \, q(z \mid u_k)

    The pseudo-inputs :math:`u_k` and the weights :math:`\pi_k` are parameters. The posterior is the VAE's own; it is
    not registered a second time, so that each of its parameters has one name. It is evaluated at the K pseudo-inputs
    once a step. A VAE whose posterior is replaced needs a new VampPrior too: this one keeps the posterior it was given.

    Args:
        posterior: maps ``(K, *E)`` to q(z|x): the posterior that the VAE is given.
        pseudo_inputs: where the pseudo-inputs start, ``(K, *E)``: rows of the training data. They are not kept within
            the range of the data.
        pseudo_given: what is given with the pseudo-inputs, where the posterior needs it; constants of K rows.
        mask: which elements of the pseudo-inputs count as observed, of their shape: needed where the posterior is
            told what is missing. ``~pseudo_inputs.isnan()`` for rows of data with missing elements.
        network: maps what is given, ``(B, C)``, to the logits ``(B, K)`` of the weights: a conditional prior p(z|y).
            None: the weights are parameters.
        given: the position of the network's input among what is given with the data.

    Returns:
        ``forward(*given)`` returns a distribution of batch shape ``()``, or ``(B,)`` with a network, and event shape
        ``(D,)``. It has no reparameterized sampler.

    Raises:
        TypeError: ``pseudo_inputs`` is not a float tensor; ``posterior`` returns no distribution.
        ValueError: it has no row; ``pseudo_given`` has other numbers of rows; the network's input is not given.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> posterior = pv.DiagonalNormalPosterior(pv.MLP(6, 2 * 2, hidden_dims=(8,)))
        >>> prior = VampPrior(posterior, torch.rand(50, 6))
        >>> vae = pv.VAE(prior, pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=(8,))), posterior)
        >>> vae.sample(3).shape
        torch.Size([3, 6])

    Source:
        Tomczak and Welling (2018), VAE with a VampPrior, equation 9.
    """

    def __init__(
        self,
        posterior: Callable[..., Any],
        pseudo_inputs: Tensor,
        *pseudo_given: Any,
        mask: Tensor | None = None,
        network: nn.Module | None = None,
        given: int = 0,
    ) -> None:
        super().__init__()
        if as_int(pseudo_inputs) is not None:
            raise TypeError(
                f"pseudo_inputs: expected the pseudo-inputs to start from, a tensor, got a number, {pseudo_inputs}. "
                f"Take rows of the training data, as floats: train_x[:{pseudo_inputs}]."
            )
        require_tensor("pseudo_inputs", pseudo_inputs)
        if not pseudo_inputs.is_floating_point():
            raise TypeError(
                f"pseudo_inputs: expected floating-point values, got {pseudo_inputs.dtype}. Convert them "
                "(pyro_vae.data.to_float)."
            )
        if pseudo_inputs.ndim < 2 or not len(pseudo_inputs):
            raise ValueError(
                f"pseudo_inputs: expected shape (K, *E) with K of at least 1, got {tuple(pseudo_inputs.shape)}. Take "
                "rows of the training data: train_x[:500]."
            )
        for i, value in enumerate(pseudo_given):
            require_rows(f"pseudo_given[{i}]", value, len(pseudo_inputs), "as in pseudo_inputs")
        self._posterior = (posterior,)  # in a tuple, which nn.Module does not look into
        self._pseudo_given = pseudo_given
        if mask is not None:
            require_mask("mask", mask, pseudo_inputs)
            pseudo_inputs = pseudo_inputs.where(mask, torch.zeros_like(pseudo_inputs))
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone())
        self.register_buffer("mask", mask)
        self.weights = Weights(len(pseudo_inputs), network, given)

    def forward(self, *given: Any) -> dist.MixtureSameFamily:
        """Return p(z), or p(z|y)."""
        (posterior,) = self._posterior
        told = {} if self.mask is None else {"mask": self.mask}
        components = posterior(self.pseudo_inputs, *self._pseudo_given, **told)
        require_distribution("posterior", components)
        return mixture(self.weights(*given), components)
