"""A hierarchy of latent variables: z_L ~ p(z_L), z_l ~ p(z_l|z_l+1), x ~ p(x|z_1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._checks import require_distribution, require_positive_int
from ..posteriors.network_input import network_input
from .latent_scale import latent_scale
from .module import module
from .vae import VAE, naming_what_is_not_finite

__all__ = ["HierarchicalVAE"]


class HierarchicalVAE(VAE):
    r"""A variational autoencoder with L layers of latent variables, ``z_1`` nearest to the data.

    .. code-block:: text

        model                       guide, bottom-up            guide, top-down (ladder)
        z_L ~ p(z_L)                z_1 ~ q(z_1|x)              h_1 = f_1(x), h_l = f_l(h_l-1)
        z_l ~ p(z_l|z_l+1)          z_l ~ q(z_l|z_l-1)          z_L ~ N(mu_L(h_L), sigma_L(h_L)^2)
        x   ~ p(x|z_1)                                          z_l ~ q(z_l|z_l+1, x)

    The ladder's q(z_l|z_l+1, x) is the normalized product of p(z_l|z_l+1) and :math:`N(\mu_l(h_l), \sigma_l(h_l)^2)`,
    both normal with diagonal covariance: precisions add up, and means are weighted by precision.

    Sites ``"z_1"`` to ``"z_L"`` and ``"x"`` in the plate ``"data"`` at ``dim=-1``. Everything else is as in ``VAE``,
    ``mask=`` and ``missing=True`` included. With one layer it is ``VAE``. Train it with a ``beta`` that rises from 0
    (``pyro_vae.linear_warmup``): without it upper layers, of the ladder above all, may stay unused.

    ``TraceMeanField_ELBO`` takes the ladder, whose layers are drawn in the model's order. Of the bottom-up guide it
    would compute something that is no bound, and warns; use ``TraceSTL_ELBO``, ``TraceIWAE_ELBO`` or ``Trace_ELBO``.

    Args:
        prior: ``(*given)`` to p(z_L), as in ``VAE``.
        conditionals: L - 1 modules, ``z_l+1`` ``(*, D_l+1)``, ``*given`` to p(z_l|z_l+1), nearest to x first. A
            posterior of pyro_vae is one, ``DiagonalNormalPosterior(MLP(D_2, 2 * D_1))`` for instance.
        likelihood: ``z_1`` ``(*, D_1)``, ``*given`` to p(x|z_1), as in ``VAE``.
        posteriors: L modules that return distributions, nearest to x first. Bottom-up: of ``x`` and then of ``z_l-1``,
            ``*given``. Top-down: of ``h_l``, ``*given``, and normal with diagonal covariance
            (``DiagonalNormalPosterior``).
        bottom_up: L networks :math:`f_l` for the top-down guide, of ``x`` and then of ``h_l-1``, nearest to x first.
            None: the bottom-up guide. With a mask, it is joined to the input of the first.
        missing: as in ``VAE``.
        name: as in ``VAE``.

    Raises:
        TypeError: a part that is not callable, or a layer that is not a ``torch.nn.Module``.
        ValueError: the numbers of ``conditionals``, ``posteriors`` and ``bottom_up`` do not go together; (from
            ``model``) a guide's variable of another event shape than the model's; (from ``guide``, top-down) a layer
            that is not normal with diagonal covariance.

    Example:
        The two layers of Burda et al. 2016:

        >>> import pyro_vae as pv
        >>> def normal(inputs, outputs, hidden):
        ...     return pv.DiagonalNormalPosterior(pv.MLP(inputs, 2 * outputs, (hidden, hidden), nn.Tanh))
        >>> vae = pv.HierarchicalVAE(
        ...     pv.StandardNormalPrior(50),
        ...     [normal(50, 100, 100)],
        ...     pv.BernoulliLikelihood(pv.MLP(100, 784, (200, 200), nn.Tanh)),
        ...     [normal(784, 100, 200), normal(100, 50, 100)],
        ... )
        >>> vae.sample(3).shape, vae.reconstruct(torch.zeros(5, 784)).shape
        (torch.Size([3, 784]), torch.Size([5, 784]))

    Source:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, equations 1 and 2; for the ladder
        Sonderby et al. (2016), Ladder Variational Autoencoders, equations 8 to 12.
    """

    def __init__(
        self,
        prior: Callable[..., Any],
        conditionals: Sequence[nn.Module],
        likelihood: Callable[..., Any],
        posteriors: Sequence[nn.Module],
        bottom_up: Sequence[nn.Module] | None = None,
        *,
        missing: bool = False,
        name: str = "hierarchical_vae",
    ) -> None:
        layers = {"conditionals": conditionals, "posteriors": posteriors, "bottom_up": bottom_up or ()}
        for argument, modules in layers.items():
            for i, value in enumerate(modules):
                if not isinstance(value, nn.Module):
                    raise TypeError(f"{argument}[{i}]: expected a torch.nn.Module, got {value!r}.")
        if len(posteriors) != len(conditionals) + 1 or (bottom_up is not None and len(bottom_up) != len(posteriors)):
            networks = "" if bottom_up is None else f" and {len(bottom_up)} networks in bottom_up"
            raise ValueError(
                "posteriors: expected one for each of the layers z_1 to z_L, and so one more than conditionals, which "
                f"has none for z_L, and as many as bottom_up has networks; got {len(posteriors)} posteriors, "
                f"{len(conditionals)} conditionals{networks}."
            )
        super().__init__(prior, likelihood, posteriors[0], missing=missing, name=name)
        del self.posterior  # it is the first of posteriors
        self.conditionals = nn.ModuleList(conditionals)
        self.posteriors = nn.ModuleList(posteriors)
        self.bottom_up = None if bottom_up is None else nn.ModuleList(bottom_up)
        self.num_layers = len(posteriors)

    def model(
        self,
        x: Tensor | None = None,
        *given: Any,
        mask: Tensor | None = None,
        size: int | None = None,
        beta: float | Tensor = 1.0,
    ) -> Tensor:
        """Draw z_L ~ p(z_L) to z_1 ~ p(z_1|z_2), then draw or observe x ~ p(x|z_1). Arguments as in ``VAE.model``."""
        module(self.name, self)
        with self.data_plate(x, *given, size=size):
            with latent_scale(beta):
                z = self._draw("prior", self.num_layers, self.prior(*given))
                for i in range(self.num_layers - 1, 0, -1):
                    z = self._draw(f"conditionals[{i - 1}]", i, self.conditionals[i - 1](z, *given))
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
        """Draw z_1 to z_L, bottom-up or top-down, and return z_1. Arguments as in ``VAE.model``."""
        module(self.name, self)
        with self.data_plate(x, *given, size=size), latent_scale(beta):
            return self.latents(x, *given, mask=mask, draw=pyro.sample)[0]

    def latents(
        self,
        x: Tensor,
        *given: Any,
        mask: Tensor | None = None,
        draw: Callable[[str, Any], Tensor] = lambda name, q: q.sample(),
    ) -> list[Tensor]:
        """Return z_1 to z_L, each ``(*, D_l)``, for ``x`` ``(*, *E)``.

        Args:
            x: data.
            *given: as in ``VAE.model``.
            mask: as in ``VAE.model``.
            draw: what takes a value from each layer, from its name and its q given the layers before; by default a
                draw. ``lambda name, q: q.mean`` takes means.
        """
        if self.bottom_up is None:
            z = [draw("z_1", self.encode(x, *given, mask=mask))]
            for i in range(1, self.num_layers):
                q = self.posteriors[i](z[-1], *given)
                require_distribution(f"posteriors[{i}]", q)
                z.append(draw(f"z_{i + 1}", q))
            return z
        *lower, top = self._estimates(x, *given, mask=mask)
        z = [draw(f"z_{self.num_layers}", top)]
        for i in range(self.num_layers - 2, -1, -1):
            z.insert(0, draw(f"z_{i + 1}", _product(i, lower[i], self.conditionals[i](z[0], *given))))
        return z

    def draw_top(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> Tensor:
        """Draw z_L, the layer that has the prior, ``(*, D_L)``: what ``fit_prior`` fits it to."""
        return self.latents(x, *given, mask=mask)[-1]

    def encode(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> Any:
        """Return the first distribution of the guide: q(z_1|x) bottom-up, q(z_L|x) top-down.

        It has batch shape ``*`` for ``x`` ``(*, *E)``, of which ``mask`` is observed.
        """
        if self.bottom_up is not None:
            return self._estimates(x, *given, mask=mask)[-1]
        observed = self.observed(x, mask)
        with naming_what_is_not_finite(x, observed):
            q = self.posteriors[0](x, *given) if observed is None else self.posteriors[0](x, *given, mask=observed)
        require_distribution("posteriors[0]", q)
        return q

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, *given: Any, mask: Tensor | None = None, num_particles: int | None = None
    ) -> Tensor:
        """Return the reconstruction of ``x``, an expected datum, as ``VAE.reconstruct`` does.

        Without ``num_particles`` each layer of the top-down guide is at its mean given the mean of the one above.
        """
        if num_particles is None:
            try:
                if self.bottom_up is None:  # the layers above do not matter
                    return self.decode(self.encode(x, *given, mask=mask).mean, *given).mean
                return self.decode(self.latents(x, *given, mask=mask, draw=lambda name, q: q.mean)[0], *given).mean
            except NotImplementedError:
                num_particles = 100
        first = "z_1" if self.bottom_up is None else f"z_{self.num_layers}"
        particles = (require_positive_int("num_particles", num_particles),)
        z = self.latents(x, *given, mask=mask, draw=lambda name, q: q.sample(particles if name == first else ()))
        return self.decode(z[0], *given).mean.mean(0)

    def sample_latent(self, n: int, *given: Any) -> Tensor:
        """Draw ``n`` values of z_1 from the generative model."""
        z = super().sample_latent(n, *given)
        for conditional in reversed(self.conditionals):
            z = conditional(z, *given).sample()
        return z

    def _draw(self, part: str, layer: int, p: Any) -> Tensor:
        """Draw a layer of the model; refuse the guide's draw if it has another event shape: log p would broadcast."""
        require_distribution(part, p)
        z: Tensor = pyro.sample(f"z_{layer}", p)
        if z.shape[-1:] != p.event_shape:
            raise ValueError(
                f"posteriors[{layer - 1}]: expected draws of event shape {tuple(p.event_shape)}, that of {part}, got "
                f"{tuple(z.shape[-1:])}. Give its network 2 * latent_dim outputs, latent_dim being that of {part}."
            )
        return z

    def _estimates(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> list[Any]:
        """Return the normal distributions that the deterministic pass from x upwards gives for z_1 to z_L."""
        h, estimates = x, []
        observed = self.observed(x, mask)
        with naming_what_is_not_finite(x, observed):
            for i, (network, posterior) in enumerate(zip(self.bottom_up or (), self.posteriors, strict=True)):
                h = network(network_input(network, h, observed if i == 0 else None))
                estimates.append(posterior(h, *given))
                require_distribution(f"posteriors[{i}]", estimates[-1])
        return estimates


def _product(i: int, estimate: Any, p: Any) -> dist.Independent:
    """Return the normalized product of two normal densities with diagonal covariances."""
    for part, q in ((f"posteriors[{i}]", estimate), (f"conditionals[{i}]", p)):
        require_distribution(part, q)
        if not isinstance(getattr(q, "base_dist", None), torch.distributions.Normal) or len(q.event_shape) != 1:
            raise ValueError(
                f"{part}: expected a normal distribution with diagonal covariance for the top-down guide, got "
                f"{type(q).__name__}. Use DiagonalNormalPosterior, or leave bottom_up out for the bottom-up guide."
            )
    if estimate.event_shape != p.event_shape:
        raise ValueError(
            f"posteriors[{i}]: expected event shape {tuple(p.event_shape)}, that of conditionals[{i}], got "
            f"{tuple(estimate.event_shape)}. Give its network 2 * {p.event_shape[0]} outputs."
        )
    a, b = estimate.base_dist, p.base_dist
    total = a.scale.square() + b.scale.square()
    loc = b.loc + (a.loc - b.loc) * (b.scale.square() / total)
    return dist.Normal(loc, a.scale * b.scale / total.sqrt()).to_event(1)
