"""The deep Markov model: a chain of latent variables behind a sequence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from .._checks import require_distribution, require_positive_int, require_rows, require_tensor
from ..likelihoods.observation import observed_elements
from .latent_scale import latent_scale
from .module import module

__all__ = ["DeepMarkovModel"]


class DeepMarkovModel(nn.Module):
    """A deep Markov model of sequences, ragged ones too, and a guide that looks at what is to come.

    .. code-block:: text

        model                                 guide
        z_t ~ p(z_t | z_{t-1})                h_t = summary of x_t, ..., x_T
        x_t ~ p(x_t | z_t),  t = 1, ..., T    z_t ~ q(z_t | z_{t-1}, h_t)

    z_0 is a parameter of the model, and another one of the guide. In the guide z_t depends on z_{t-1} and on what is
    to come alone, as in the exact posterior. Sites: ``"z_1"`` to ``"z_T"``, and ``"x"``, all x_t at once, in the plate
    ``"data"`` of the sequences at ``dim=-1``.

    Sequences of different lengths are padded to one length T, with anything; ``lengths`` says how many steps of each
    are real, and the others count for nothing. All batches of one shape are one captured graph under ``CompiledSVI``,
    whatever their lengths: pad all batches to one T, or to a few.

    Args:
        transition: z_{t-1} ``(*, D)`` to p(z_t|z_{t-1}), of batch shape ``*`` and event shape ``(D,)``:
            :class:`pyro_vae.GatedTransition`, for instance.
        likelihood: z ``(*, D)`` to p(x_t|z_t), of batch shape ``*`` and event shape ``E``: any likelihood.
        posterior: z_{t-1} ``(*, D)`` and h_t ``(*, H)``, joined to ``(*, D + H)``, to q(z_t|z_{t-1}, h_t): any
            posterior over a vector.
        summary: x ``(B, T, *E)`` and lengths ``(B,)`` to h ``(B, T, H)``, where h_t depends on x_t, ..., x_T:
            :class:`pyro_vae.BackwardRNN`, for instance.
        latent_dim: D.
        name: prefix of the parameters in Pyro's param store.

    Raises:
        TypeError: a part that is not callable.

    Example:
        >>> import pyro_vae as pv
        >>> _ = torch.manual_seed(0)
        >>> dmm = pv.DeepMarkovModel(
        ...     pv.GatedTransition(3, hidden_dim=8),
        ...     pv.BernoulliLikelihood(pv.MLP(3, 88, hidden_dims=(16,))),
        ...     pv.DiagonalNormalPosterior(pv.MLP(3 + 16, 2 * 3, hidden_dims=())),
        ...     pv.BackwardRNN(88, hidden_dim=16),
        ...     latent_dim=3,
        ... )
        >>> x, lengths = torch.zeros(5, 7, 88), torch.tensor([7, 3, 5, 1, 7])
        >>> dmm.sample(2, steps=4).shape, dmm.forecast(x, lengths, steps=4, num_samples=10).shape
        (torch.Size([2, 4, 88]), torch.Size([10, 5, 4, 88]))
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> svi = SVI(dmm.model, dmm.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> loss = svi.step(x, lengths)  # minus the ELBO in nats, summed over the sequences

    Source:
        Krishnan, Shalit and Sontag (2017), Structured Inference Networks for Nonlinear State Space Models, section 4
        and equation 6 (DKS).
    """

    def __init__(
        self,
        transition: Callable[..., Any],
        likelihood: Callable[..., Any],
        posterior: Callable[..., Any],
        summary: Callable[..., Any],
        *,
        latent_dim: int,
        name: str = "deep_markov",
    ) -> None:
        super().__init__()
        parts = {"transition": transition, "likelihood": likelihood, "posterior": posterior, "summary": summary}
        for part, value in parts.items():
            if not callable(value) or isinstance(value, type):
                raise TypeError(f"{part}: expected a module, got {value!r}.")
        self.transition = transition
        self.likelihood = likelihood
        self.posterior = posterior
        self.summary = summary
        self.latent_dim = require_positive_int("latent_dim", latent_dim)
        self.name = name
        self.z_0 = nn.Parameter(torch.zeros(self.latent_dim))
        self.q_0 = nn.Parameter(torch.zeros(self.latent_dim))

    def model(
        self, x: Tensor, lengths: Tensor | None = None, *, size: int | None = None, beta: float | Tensor = 1.0
    ) -> Tensor:
        """Draw z_t ~ p(z_t|z_{t-1}), and observe x_t ~ p(x_t|z_t).

        Args:
            x: sequences ``(B, T, *E)``.
            lengths: how many steps of each are real, integers ``(B,)`` from 1 to T; None: all.
            size: number of sequences in the whole set, of which ``x`` is a mini-batch.
            beta: weight of the latent terms; see ``pyro_vae.latent_scale``.

        Returns:
            ``x``.

        Raises:
            TypeError, ValueError: ``x`` is not a float tensor ``(B, T, *E)`` with a step at least; ``lengths`` are not
                integers ``(B,)`` from 1 to T (in a captured step the loss is then NaN, and the step is not taken); data
                outside the likelihood's support.
        """
        module(self.name, self)
        with self.data_plate(x, lengths, size):
            lengths, z = _start(self.z_0, x, lengths)
            path = []
            for t, real in _times(x, lengths):
                with real, latent_scale(beta):
                    z = pyro.sample(f"z_{t}", self.transition(z))
                path.append(z)
            p = observed_elements(self.decode(torch.stack(path, -2)), _real_elements(x, lengths))
            return pyro.sample("x", p.to_event(1), obs=x)

    def guide(
        self, x: Tensor, lengths: Tensor | None = None, *, size: int | None = None, beta: float | Tensor = 1.0
    ) -> Tensor:
        """Draw z_t ~ q(z_t|z_{t-1}, h_t), and return all, ``(*, T, D)``. Arguments as in ``model``."""
        module(self.name, self)
        with self.data_plate(x, lengths, size):
            lengths, z = _start(self.q_0, x, lengths)
            h = self.summary(x, lengths).unbind(1)  # the gradient of h[:, t] would fill all of h anew for each t
            path = []
            for t, real in _times(x, lengths):
                with real, latent_scale(beta):
                    z = pyro.sample(f"z_{t}", self.encode(z, h[t - 1]))
                path.append(z)
            return torch.stack(path, -2)

    def data_plate(self, x: Tensor, lengths: Tensor | None, size: int | None) -> Any:
        """Return the plate ``"data"`` at ``dim=-1`` over the sequences ``x``, a mini-batch of ``size``."""
        require_tensor("x", x)
        if x.ndim < 2 or 0 in x.shape[:2]:
            raise ValueError(
                f"x: expected sequences (B, T, *E) with at least one step, got shape {tuple(x.shape)}. Leave empty "
                "sequences out, and give a single one as x[None]."
            )
        if lengths is not None:
            _require_lengths(lengths, x)
        if size is not None and require_positive_int("size", size) < len(x):
            raise ValueError(f"size: expected the number of all sequences, at least len(x) = {len(x)}, got {size}.")
        return pyro.plate("data", len(x) if size is None else size, subsample=x, dim=-1)

    def encode(self, z: Tensor, h: Tensor) -> Any:
        """Return q(z_t|z_{t-1}, h_t) at z_{t-1} ``(*, D)`` and h_t ``(B, H)``."""
        return self.posterior(torch.cat([z, h.expand(*z.shape[:-1], h.shape[-1])], -1))

    def decode(self, z: Tensor) -> Any:
        """Return p(x_t|z_t), a distribution of batch shape ``*`` for z ``(*, D)``."""
        p = self.likelihood(z)
        require_distribution("likelihood", p)
        return p

    @torch.no_grad()
    def sample(self, n: int = 1, *, steps: int, mean: bool = False) -> Tensor:
        """Draw ``n`` sequences of ``steps`` steps, ``(n, steps, *E)``; with ``mean`` E[x_t|z_t] of each drawn z_t."""
        n, steps = require_positive_int("n", n), require_positive_int("steps", steps)
        p = self.decode(self._go_on(self.z_0.expand(n, -1), steps))
        return p.mean if mean else p.sample()

    @torch.no_grad()
    def forecast(
        self, x: Tensor, lengths: Tensor | None = None, *, steps: int, num_samples: int = 100, mean: bool = False
    ) -> Tensor:
        """Draw what follows each sequence: z_T ~ q(z_T|x), then the model alone.

        Args:
            x: sequences ``(B, T, *E)``.
            lengths: how many steps of each are real, ``(B,)``; what follows begins after the last of these.
            steps: how many steps to draw.
            num_samples: S, how many continuations of each sequence.
            mean: return E[x_t|z_t] of each drawn z_t in place of draws of x_t.

        Returns:
            ``(S, B, steps, *E)``.
        """
        steps, num_samples = require_positive_int("steps", steps), require_positive_int("num_samples", num_samples)
        with poutine.block(), pyro.plate("draws", num_samples, dim=-2):
            path = self.guide(x, lengths)  # (S, B, T, D)
        path = path.expand(num_samples, *path.shape[-3:])
        ends = torch.full((len(x),), x.shape[1]) if lengths is None else lengths.long()
        last = path[:, torch.arange(len(x), device=x.device), ends - 1]
        p = self.decode(self._go_on(last, steps))
        return p.mean if mean else p.sample()

    def _go_on(self, z: Tensor, steps: int) -> Tensor:
        """Draw the next ``steps`` latent variables after z ``(*, D)``, ``(*, steps, D)``."""
        path = []
        for _ in range(steps):
            z = self.transition(z).sample()
            path.append(z)
        return torch.stack(path, -2)


def _start(z_0: Tensor, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Return lengths within 1 to T, and z_0 of each sequence: NaN, and with it the loss, where a length is outside."""
    z = z_0.expand(len(x), -1)
    if lengths is None:
        return None, z
    lengths = lengths.long()
    inside = lengths.clamp(1, x.shape[1])
    return inside, z.where((lengths == inside)[:, None], math.nan)


def _times(x: Tensor, lengths: Tensor | None) -> Iterator[tuple[int, Any]]:
    """Yield t = 1, ..., T, each with a handler that masks the sequences that are shorter."""
    for t in pyro.markov(range(1, x.shape[1] + 1)):
        yield t, nullcontext() if lengths is None else poutine.mask(mask=lengths >= t)


def _real_elements(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Return True for the elements of x ``(B, T, *E)`` in real steps."""
    if lengths is None:
        return torch.ones_like(x, dtype=torch.bool)
    steps = torch.arange(1, x.shape[1] + 1, device=x.device)
    real = steps <= lengths[:, None]
    return real.reshape(*real.shape, *(1,) * (x.ndim - 2)).expand(x.shape)


def _require_lengths(lengths: Any, x: Tensor) -> None:
    if isinstance(lengths, (dict, tuple)):
        raise TypeError(
            f"lengths: expected a tensor, got a {type(lengths).__name__}, as of global variables (with_globals), which "
            "DeepMarkovModel does not take. Write a model that draws them itself."
        )
    require_tensor("lengths", lengths)
    require_rows("lengths", lengths, len(x))
    if lengths.ndim != 1 or lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(
            f"lengths: expected integers of shape ({len(x)},), got {lengths.dtype} of shape {tuple(lengths.shape)}. "
            "Give one number of steps for each sequence."
        )
    lengths = lengths.long()
    if torch.distributions.Distribution._validate_args and not ((lengths >= 1) & (lengths <= x.shape[1])).all():
        raise ValueError(
            f"lengths: expected numbers of steps from 1 to {x.shape[1]}, that of x, got from {int(lengths.min())} to "
            f"{int(lengths.max())}. Leave empty sequences out, and pad x to the longest."
        )
