"""The variational autoencoder: z ~ p(z), x ~ p(x|z)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from .._checks import require_distribution, require_positive_int, require_tensor
from .latent_scale import latent_scale
from .module import module

__all__ = ["VAE"]


class VAE(nn.Module):
    """A variational autoencoder: a generative model and an amortised guide, as two Pyro functions.

    .. code-block:: text

        model                      guide
        z ~ p(z)                   z ~ q(z|x)
        x ~ p(x|z)

    Both run in the plate ``"data"`` at ``dim=-1`` with the sites ``"z"`` and ``"x"``. ``SVI``, ``Predictive``,
    ``NUTS``, ``AutoGuide`` and every handler of Pyro take ``vae.model`` and ``vae.guide`` as they are. For another
    generative model, write the two functions in a subclass, or as plain functions: nothing in pyro_vae asks for this
    class. To save a VAE, save ``vae.state_dict()``. Pickling the module fails, because Pyro's param store leaves weak
    references on its parameters.

    Args:
        prior: ``()`` to p(z), of batch shape ``()`` and event shape ``(D,)``.
        likelihood: ``z`` ``(*, D)`` to p(x|z), of batch shape ``*`` and event shape ``E``.
        posterior: ``x`` ``(*, *E)`` to q(z|x), of batch shape ``*`` and event shape ``(D,)``.
        name: prefix of the parameters in Pyro's param store. Instances may share a name (see ``pyro_vae.module``).

    Raises:
        TypeError: a part that is not callable.

    Example:
        >>> import pyro_vae as pv
        >>> _ = torch.manual_seed(0)
        >>> prior = pv.StandardNormalPrior(2)
        >>> likelihood = pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=(8,)))
        >>> posterior = pv.DiagonalNormalPosterior(pv.MLP(6, 2 * 2, hidden_dims=(8,)))
        >>> vae = pv.VAE(prior, likelihood, posterior)
        >>> vae.sample(3).shape, vae.reconstruct(torch.zeros(5, 6)).shape
        (torch.Size([3, 6]), torch.Size([5, 6]))
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> loss = svi.step(torch.ones(5, 6))  # minus the ELBO in nats, summed over the batch

    Source:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes; Rezende, Mohamed and Wierstra (2014), Stochastic
        Backpropagation and Approximate Inference in Deep Generative Models. For ``beta``: Higgins et al. (2017),
        beta-VAE, equation 4.
    """

    def __init__(
        self,
        prior: Callable[[], Any],
        likelihood: Callable[[Tensor], Any],
        posterior: Callable[[Tensor], Any],
        *,
        name: str = "vae",
    ) -> None:
        super().__init__()
        for part, value in (("prior", prior), ("likelihood", likelihood), ("posterior", posterior)):
            if not callable(value) or isinstance(value, type):
                raise TypeError(f"{part}: expected a module whose forward returns a distribution, got {value!r}.")
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior
        self.name = name

    def model(self, x: Tensor | None = None, *, size: int | None = None, beta: float | Tensor = 1.0) -> Tensor:
        """Draw z ~ p(z), then draw or observe x ~ p(x|z).

        Args:
            x: data ``(B, *E)`` to condition on, or ``None`` to draw from the prior.
            size: number of data in the whole set, of which ``x`` is a mini-batch: its terms count ``size / B`` times.
                By default ``len(x)``, so that they count once; without ``x``, how many to draw (1).
            beta: weight of the latent terms, log p(z) and log q(z|x); above 0. See ``pyro_vae.latent_scale``.

        Returns:
            ``x``, given or drawn.

        Raises:
            TypeError, ValueError: ``x`` is not a float tensor of the event shape, is empty, or leaves the likelihood's
                support; ``size`` is smaller than the batch.
        """
        module(self.name, self)
        with self.data_plate(x, size):
            with latent_scale(beta):
                z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor, *, size: int | None = None, beta: float | Tensor = 1.0) -> Tensor:
        """Draw z ~ q(z|x) and return it. Arguments as in ``model``."""
        module(self.name, self)
        with self.data_plate(x, size), latent_scale(beta):
            return pyro.sample("z", self.encode(x))

    def data_plate(self, x: Tensor | None, size: int | None = None) -> Any:
        """Return the plate ``"data"`` at ``dim=-1`` over the rows of ``x``, a mini-batch of ``size`` data."""
        if x is None:
            return pyro.plate("data", 1 if size is None else require_positive_int("size", size), dim=-1)
        require_tensor("x", x)
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(
                f"x: expected a batch (B, *E) of at least one datum, got shape {tuple(x.shape)}. "
                "Leave empty batches out (and give a single datum as x[None])."
            )
        if hasattr(self.likelihood, "event_shape"):
            # Without this check a further dimension would pass for data, or for particles.
            event_dim = 1 if self.likelihood.event_shape is None else len(self.likelihood.event_shape)
            if x.ndim != 1 + event_dim:
                raise ValueError(
                    f"x: expected a batch (B, *E) with {1 + event_dim} dimensions, got shape {tuple(x.shape)}. "
                    "Give a single datum as x[None], and more than one batch dimension as x.flatten(0, 1)."
                )
        size = len(x) if size is None else require_positive_int("size", size)
        if size < len(x):
            raise ValueError(
                f"size: expected the number of data in the whole set, at least len(x) = {len(x)}, got {size}."
            )
        return pyro.plate("data", size, subsample=x, dim=-1)

    def encode(self, x: Tensor) -> Any:
        """Return q(z|x), a distribution of batch shape ``*`` for ``x`` ``(*, *E)``."""
        try:
            q = self.posterior(x)
        except ValueError as error:  # Pyro's own message speaks of the network's output, and not of x
            if isinstance(x, Tensor) and not x.isfinite().all():
                bad = x[~x.isfinite()][0].item()
                raise ValueError(f"x: expected finite values, got {bad}. Remove or impute what is missing.") from error
            raise
        require_distribution("posterior", q)
        latent_shape = self.prior().event_shape
        if q.event_shape != latent_shape:
            raise ValueError(
                f"posterior: expected q(z|x) of event shape {tuple(latent_shape)}, that of the prior, got "
                f"{tuple(q.event_shape)}. Give its network 2 * latent_dim outputs, latent_dim being the prior's."
            )
        return q

    def decode(self, z: Tensor) -> Any:
        """Return p(x|z), a distribution of batch shape ``*`` for ``z`` ``(*, D)``."""
        p = self.likelihood(z)
        require_distribution("likelihood", p)
        return p

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return E[x|z] ``(*, *E)`` at the posterior mean of ``z``."""
        return self.decode(self.encode(x).mean).mean

    @torch.no_grad()
    def sample(self, n: int = 1, *, mean: bool = False) -> Tensor:
        """Draw ``n`` data from the generative model.

        Args:
            n: how many.
            mean: return E[x|z] of each drawn ``z`` instead of a draw from p(x|z), as the pictures in papers show.

        Returns:
            ``(n, *E)``.
        """
        p = self.decode(self.prior().sample((require_positive_int("n", n),)))
        return p.mean if mean else p.sample()
