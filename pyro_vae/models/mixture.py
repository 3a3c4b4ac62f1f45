"""A cluster and a latent variable: y ~ p(y), z ~ p(z|y), x ~ p(x|z)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

from .._checks import require_distribution, require_positive_int, require_rows
from .classes import full_like, read_labels, require_values
from .latent_scale import latent_scale
from .module import module
from .vae import VAE, naming_what_is_not_finite

__all__ = ["MixtureVAE"]


class MixtureVAE(VAE):
    r"""A variational autoencoder that clusters: a mixture as prior, its component ``y`` a latent variable.

    .. code-block:: text

        model                      guide
        y ~ p(y)                   z ~ q(z|x)
        z ~ p(z|y)                 y ~ p(y|z), by Bayes' rule
        x ~ p(x|z)

    The guide's p(y|z) = p(y) p(z|y) / p(z) is the model's own posterior of y given z, since x depends on y through z
    alone. No other q(y|x, z) gives a higher bound, and it needs no network: :math:`\log p(y, z) - \log p(y|z)` is
    :math:`\log p(z)` whatever y, so that the bound is that of a ``VAE`` with the mixture as prior. Train it with
    ``TraceEnum_ELBO(max_plate_nesting=1)``, which sums over the clusters. ``Trace_ELBO`` draws y, with the same loss
    and a noisier gradient. Objectives that need reparameterized draws (``TraceIWAE_ELBO``) take that ``VAE``, which
    shares the parts.

    Sites: ``"y"``, ``"z"`` and ``"x"`` in the plate ``"data"`` at ``dim=-1``. Everything else is as in ``VAE``,
    ``mask=``, ``missing=True`` and what is given included. For a likelihood that sees the cluster too, p(x|z, y), take
    ``SemiSupervisedVAE`` without labels, with a prior p(z|y).

    Args:
        prior: ``(*given)`` to a mixture of normal distributions with diagonal covariances: ``MixturePrior``,
            ``VampPrior``. Start from clusters that are found already: ``MixturePrior.set_components``.
        likelihood: as in ``VAE``.
        posterior: as in ``VAE``.
        missing: as in ``VAE``.
        name: as in ``VAE``.

    Raises:
        TypeError: a part that is not callable.
        ValueError: a prior that is no such mixture, or one of more than 10,000 components.

    Example:
        >>> import pyro_vae as pv
        >>> from pyro.infer import SVI, TraceEnum_ELBO
        >>> vae = pv.MixtureVAE(
        ...     pv.MixturePrior(2, num_components=3),
        ...     pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=(8,))),
        ...     pv.DiagonalNormalPosterior(pv.MLP(6, 2 * 2, hidden_dims=(8,))),
        ... )
        >>> svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))
        >>> loss = svi.step(torch.ones(4, 6))
        >>> vae.cluster(torch.ones(4, 6)).shape, vae.sample(5, y=2).shape
        (torch.Size([4, 3]), torch.Size([5, 6]))

    Source:
        Jiang, Zheng, Tan, Tang and Zhou (2017), Variational Deep Embedding (VaDE), equations 8 and 16, with the exact
        p(y|z) of each draw in place of its average over q(z|x).
    """

    def __init__(
        self,
        prior: Callable[..., Any],
        likelihood: Callable[..., Any],
        posterior: Callable[..., Any],
        *,
        missing: bool = False,
        name: str = "mixture_vae",
    ) -> None:
        super().__init__(prior, likelihood, posterior, missing=missing, name=name)

    def model(
        self,
        x: Tensor | None = None,
        *given: Any,
        mask: Tensor | None = None,
        size: int | None = None,
        beta: float | Tensor = 1.0,
    ) -> Tensor:
        """Draw y ~ p(y) and z ~ p(z|y), then draw or observe x ~ p(x|z). Arguments as in ``VAE.model``."""
        module(self.name, self)
        with self.data_plate(x, *given, size=size):
            with latent_scale(beta):
                p = self._mixture(*given)
                y = pyro.sample("y", p.mixture_distribution)
                z = pyro.sample("z", _component(p, y))
            observed = self.observed(x, mask)
            with naming_what_is_not_finite(x, observed):
                p_x = self.decode(z, *given, mask=observed)
            return pyro.sample("x", p_x, obs=x)

    def guide(
        self,
        x: Tensor,
        *given: Any,
        mask: Tensor | None = None,
        size: int | None = None,
        beta: float | Tensor = 1.0,
    ) -> Tensor:
        """Draw z ~ q(z|x) and y ~ p(y|z), and return z. Arguments as in ``VAE.model``."""
        module(self.name, self)
        with self.data_plate(x, *given, size=size), latent_scale(beta):
            z = pyro.sample("z", self.encode(x, *given, mask=mask))
            pyro.sample("y", _cluster(self._mixture(*given), z), infer={"enumerate": "parallel"})
            return z

    @torch.no_grad()
    def cluster(self, x: Tensor, *given: Any, mask: Tensor | None = None, num_particles: int = 100) -> Tensor:
        """Return the probabilities of the clusters, p(y|z) averaged over q(z|x), ``(B, K)``.

        Args:
            x: data ``(B, *E)``.
            *given: as in ``model``.
            mask: as in ``model``.
            num_particles: draws of z for each datum.
        """
        q = self.encode(x, *given, mask=mask)
        z = q.sample((require_positive_int("num_particles", num_particles),))
        return _cluster(self._mixture(*given), z).probs.mean(0)

    @torch.no_grad()
    def sample(self, n: int = 1, *given: Any, y: Tensor | int | None = None, mean: bool = False) -> Tensor:
        """Draw ``n`` data from the generative model, ``(n, *E)``.

        Args:
            n: how many.
            *given: as in ``VAE.sample``.
            y: clusters to draw from, ``(n,)``, -1 for any; a number for all; None: all are drawn from p(y).
            mean: as in ``VAE.sample``.
        """
        if y is None:
            return super().sample(n, *given, mean=mean)
        n = require_positive_int("n", n)
        p = self._mixture(*given)
        drawn = p.mixture_distribution.expand((n,)).sample()
        labels = read_labels("y", full_like(drawn, y), p.mixture_distribution.logits.shape[-1])
        require_rows("y", labels.y, n, "as n")
        p_x = self.decode(_component(p, labels.y.where(labels.known, drawn)).sample(), *given)
        return p_x.mean if mean else p_x.sample()

    def _mixture(self, *given: Any) -> dist.MixtureSameFamily:
        p = self.prior(*given)
        require_distribution("prior", p)
        components = getattr(p, "component_distribution", None)
        if not isinstance(getattr(components, "base_dist", None), torch.distributions.Normal):
            raise ValueError(
                "prior: expected a mixture (MixtureSameFamily) of normal distributions with diagonal covariances, got "
                f"{type(p).__name__}. Use MixturePrior or VampPrior; for any other prior there is VAE."
            )
        require_values("prior's components", p.mixture_distribution.logits.shape[-1])
        return p


def _component(p: Any, y: Tensor) -> dist.Independent:
    """Return p(z|y)."""
    normal = p.component_distribution.base_dist
    return dist.Normal(*(Vindex(part)[..., y, :] for part in (normal.loc, normal.scale))).to_event(1)


def _cluster(p: Any, z: Tensor) -> dist.Categorical:
    """Return p(y|z)."""
    log_joint = p.mixture_distribution.logits + p.component_distribution.log_prob(z[..., None, :])
    return dist.Categorical(logits=log_joint)
