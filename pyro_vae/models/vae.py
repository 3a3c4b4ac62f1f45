"""The variational autoencoder: z ~ p(z), x ~ p(x|z)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from .._checks import require_distribution, require_mask, require_positive_int, require_rows, require_tensor
from ..likelihoods.observation import observed_elements
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
    class.

    What is given with the data (labels, exposures) follows ``x`` in every method: each of the three parts gets all of
    it, in order, and uses what it needs.

    Data that are missing are left out of the likelihood, and the posterior is told which they are: they are NaN in
    ``x`` with ``missing=True``, or ``mask`` says so. See ``docs/missing_data.md``.

    To save a VAE, save ``vae.state_dict()``. Pickling the module fails, because Pyro's param store leaves weak
    references on its parameters.

    Args:
        prior: ``(*given)`` to p(z), of batch shape ``()`` or ``(B,)`` and event shape ``(D,)``.
        likelihood: ``z`` ``(*, D)``, ``*given`` to p(x|z), of batch shape ``*`` and event shape ``E``.
        posterior: ``x`` ``(*, *E)``, ``*given`` to q(z|x), of batch shape ``*`` and event shape ``(D,)``. It is called
            with ``mask=`` where there is one; the posteriors of pyro_vae then join it to the input of their network.
        missing: whether NaN in ``x`` means missing. Then there always is a mask.
        name: prefix of the parameters in Pyro's param store. Instances may share a name unless they are used in one
            model (see ``pyro_vae.module``).

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
        prior: Callable[..., Any],
        likelihood: Callable[..., Any],
        posterior: Callable[..., Any],
        *,
        missing: bool = False,
        name: str = "vae",
    ) -> None:
        super().__init__()
        for part, value in (("prior", prior), ("likelihood", likelihood), ("posterior", posterior)):
            if not callable(value) or isinstance(value, type):
                raise TypeError(f"{part}: expected a module whose forward returns a distribution, got {value!r}.")
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior
        self.missing = bool(missing)
        self.name = name
        self._compared: tuple[Any, torch.Size] | None = None  # a prior, and the event shape of p(z) and q(z|x)

    def model(
        self,
        x: Tensor | None = None,
        *given: Any,
        mask: Tensor | None = None,
        size: int | None = None,
        beta: float | Tensor = 1.0,
    ) -> Tensor:
        """Draw z ~ p(z), then draw or observe x ~ p(x|z).

        Args:
            x: data ``(B, *E)`` to condition on, or ``None`` to draw them.
            *given: what belongs to the data and is not modelled: tensors of B rows; numbers and 0-dim tensors, which
                belong to all data.
            mask: True where ``x`` is observed, of the shape of ``x``; what is not is left out of the likelihood.
            size: number of data in the whole set, of which ``x`` is a mini-batch: its terms count ``size / B`` times.
                By default ``len(x)``, so that they count once. Without ``x``, how many data to draw: by default as
                many as ``given`` has rows, or 1.
            beta: weight of the latent terms, log p(z) and log q(z|x); above 0. See ``pyro_vae.latent_scale``.

        Returns:
            ``x``, given or drawn.

        Raises:
            TypeError, ValueError: ``x`` is not a float tensor of the event shape, is empty, or leaves the likelihood's
                support; a tensor of ``given`` has another number of rows; ``size`` is smaller than the batch.
        """
        module(self.name, self)
        with self.data_plate(x, *given, size=size):
            with latent_scale(beta):
                z = pyro.sample("z", self.prior(*given))
            p = self.decode(z, *given, mask=self.observed(x, mask))
            return pyro.sample("x", p, obs=x)

    def guide(
        self,
        x: Tensor,
        *given: Any,
        mask: Tensor | None = None,
        size: int | None = None,
        beta: float | Tensor = 1.0,
    ) -> Tensor:
        """Draw z ~ q(z|x) and return it. Arguments as in ``model``."""
        module(self.name, self)
        with self.data_plate(x, *given, size=size), latent_scale(beta):
            return pyro.sample("z", self.encode(x, *given, mask=mask))

    def data_plate(self, x: Tensor | None, *given: Any, size: int | None = None) -> Any:
        """Return the plate ``"data"`` at ``dim=-1`` over the rows of ``x``, a mini-batch of ``size`` data."""
        size = None if size is None else require_positive_int("size", size)
        if x is None:
            size = size or next((len(value) for _, value in _per_datum(given)), 1)
            for name, value in _per_datum(given):
                require_rows(name, value, size, "as in size, or in the first tensor given")
            return pyro.plate("data", size, dim=-1)
        require_tensor("x", x)
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(
                f"x: expected a batch (B, *E) of at least one datum, got shape {tuple(x.shape)}. "
                "Leave empty batches out (and give a single datum as x[None])."
            )
        event_shape = getattr(self.likelihood, "event_shape", "unknown")  # None is a vector, in our likelihoods
        if event_shape is None or isinstance(event_shape, tuple):
            # Without this check a further dimension would pass for data, or for particles.
            event_dim = 1 if event_shape is None else len(event_shape)
            if x.ndim != 1 + event_dim:
                raise ValueError(
                    f"x: expected a batch (B, *E) with {1 + event_dim} dimensions, got shape {tuple(x.shape)}. "
                    "Give a single datum as x[None], and more than one batch dimension as x.flatten(0, 1)."
                )
        for name, value in _per_datum(given):
            require_rows(name, value, len(x))
        if size is not None and size < len(x):
            raise ValueError(
                f"size: expected the number of data in the whole set, at least len(x) = {len(x)}, got {size}."
            )
        return pyro.plate("data", len(x) if size is None else size, subsample=x, dim=-1)

    def observed(self, x: Tensor | None, mask: Tensor | None = None) -> Tensor | None:
        """Return the mask of what is observed, of the shape of ``x``; None where nothing can be missing."""
        if x is None:
            if mask is not None:
                raise ValueError("mask: expected data x to go with it, got none. Leave mask out to draw data.")
            return None
        if mask is not None:
            require_mask("mask", mask, x)
        if not self.missing:
            return mask
        return ~x.isnan() if mask is None else mask & ~x.isnan()

    def encode(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> Any:
        """Return q(z|x), a distribution of batch shape ``*`` for ``x`` ``(*, *E)``, of which ``mask`` is observed.

        Its event shape is compared with that of p(z) in the first call, and again after another prior was set.
        """
        observed = self.observed(x, mask)
        with naming_what_is_not_finite(x, observed):
            q = self.posterior(x, *given) if observed is None else self.posterior(x, *given, mask=observed)
        require_distribution("posterior", q)
        self._require_latent_shape(q.event_shape, given)
        return q

    def decode(self, z: Tensor, *given: Any, mask: Tensor | None = None) -> Any:
        """Return p(x|z), a distribution of batch shape ``*`` for ``z`` ``(*, D)``.

        With a ``mask``, True where x is observed, its density is that of the observed elements.
        """
        p = self.likelihood(z, *given)
        require_distribution("likelihood", p)
        return p if mask is None else observed_elements(p, mask)

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, *given: Any, mask: Tensor | None = None, num_particles: int | None = None
    ) -> Tensor:
        """Return the reconstruction of ``x``, an expected datum, of all elements, the missing ones too.

        Args:
            x: data ``(*, *E)``.
            *given: as in ``model``; tensors of as many rows as ``x``.
            mask: as in ``model``.
            num_particles: average E[x|z] over this many draws z ~ q(z|x). By default E[x|z] is taken at the mean of
                q(z|x), or averaged over 100 draws where q has no mean in closed form (a flow).

        Returns:
            ``(*, *E)``.
        """
        require_tensor("x", x)
        for name, value in _per_datum(given):
            require_rows(name, value, len(x))
        return self._reconstruct(x, *given, mask=mask, num_particles=num_particles)

    def _reconstruct(self, x: Tensor, *given: Any, mask: Tensor | None, num_particles: int | None) -> Tensor:
        q = self.encode(x, *given, mask=mask)
        if num_particles is None:
            try:
                return self.decode(q.mean, *given).mean
            except NotImplementedError:
                num_particles = 100
        z = q.sample((require_positive_int("num_particles", num_particles),))
        return self.decode(z, *given).mean.mean(0)

    @torch.no_grad()
    def sample(self, n: int = 1, *given: Any, mean: bool = False) -> Tensor:
        """Draw ``n`` data from the generative model.

        Args:
            n: how many.
            *given: as in ``model``; tensors of n rows.
            mean: return E[x|z] of each drawn ``z`` instead of a draw from p(x|z), as the pictures in papers show.

        Returns:
            ``(n, *E)``.
        """
        n = require_positive_int("n", n)
        for name, value in _per_datum(given):
            require_rows(name, value, n, "as n")
        p = self.decode(self.sample_latent(n, *given), *given)
        return p.mean if mean else p.sample()

    def sample_latent(self, n: int, *given: Any) -> Tensor:
        """Draw ``n`` values ``(n, D)`` of the latent variable that ``decode`` takes from the generative model."""
        prior = self.prior(*given)
        require_distribution("prior", prior)
        draws: Tensor = prior.expand((n,)).sample() if prior.batch_shape else prior.sample((n,))
        return draws

    def _require_latent_shape(self, shape: torch.Size, given: Sequence[Any]) -> None:
        """Refuse a posterior of another event shape than the prior's: log p(z) would broadcast."""
        if self._compared is not None and self._compared[0] is self.prior and self._compared[1] == shape:
            return  # the prior, which may be costly, is not built again
        try:
            prior = self.prior(*given)
        except TypeError:
            return  # it takes more than the guide is given, global variables; the model raises any other error again
        require_distribution("prior", prior)
        if shape != prior.event_shape:
            raise ValueError(
                f"posterior: expected q(z|x) of event shape {tuple(prior.event_shape)}, that of the prior, got "
                f"{tuple(shape)}. Give its network the outputs that the prior's latent_dim needs: 2 * latent_dim for "
                "DiagonalNormalPosterior, latent_dim for a point or the encoder of Autoencoder."
            )
        self._compared = (self.prior, shape)


def _per_datum(given: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield what has a row for each datum among what is given, with its name in errors."""
    for i, value in enumerate(given):
        if getattr(value, "ndim", 0) > 0:
            yield f"given[{i}]", value


@contextlib.contextmanager
def naming_what_is_not_finite(x: Any, observed: Tensor | None = None) -> Iterator[None]:
    """Say of NaN in ``x``, where observed, that it is there: Pyro's own message speaks of a network's output."""
    try:
        yield
    except ValueError as error:
        wrong = torch.zeros(1, dtype=torch.bool)
        if isinstance(x, Tensor):
            wrong = ~x.isfinite() if observed is None else ~x.isfinite() & observed
        if wrong.any():
            bad = x[wrong][0].item()
            fix = "Remove what is missing, or build the model with missing=True, to which NaN means missing."
            raise ValueError(f"x: expected finite values, got {bad}. {fix}") from error
        raise
