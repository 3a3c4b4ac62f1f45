"""Free bits: a KL term that is not pushed below a floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from ..._checks import require_number, require_positive_int
from ..factorization import Site, plates_of
from .differentiable import DifferentiableELBO
from .latents import Latents, elementwise, latents

__all__ = ["TraceFreeBits_ELBO"]


class TraceFreeBits_ELBO(DifferentiableELBO):
    r"""The evidence lower bound whose KL term, group by group, counts as at least ``floor`` nats per datum.

    .. math:: \mathcal{L}_\lambda = \frac{N}{B} \sum_b \mathbb{E}_q \log p(x_b \mid z) -
        N \sum_j \max\Big(\lambda, \frac{1}{B} \sum_b KL_{bj}\Big)

    with the floor :math:`\lambda` and the KL term :math:`KL_{bj}` of datum b and group j: a dimension of a latent
    variable, or the whole of it. A group below the floor gets no gradient from its KL term, so that a decoder has no
    reason to do without it: against posterior collapse. It is a lower bound on the ELBO, and equal to it where no group
    is below the floor. A latent variable outside the plate of the data is a group of its own, without N.

    The KL term is in closed form where there is one and the guide has one latent variable, else that of the draw.

    Args:
        floor: :math:`\lambda`, nats per datum and group; at least 0 (the ELBO).
        per: ``"dimension"``, which asks for independent dimensions in both p(z) and q(z|x); or ``"site"``.
        num_particles: how often model and guide are run; their mean is the loss.
        plate: name of the plate of the data. Where there is one plate alone, it is taken, whatever its name.

    Raises:
        ValueError: an argument out of range; on a step, a latent variable that is not reparameterised, has dependent
            dimensions, or is in the guide only.

    Example:
        >>> import pyro_vae as pv
        >>> _ = torch.manual_seed(0)
        >>> vae = pv.VAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=())),
        ...     pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=())),
        ... )
        >>> svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-3}), TraceFreeBits_ELBO(floor=0.25))
        >>> loss = svi.step(torch.ones(5, 6))

    Source:
        D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever, M. Welling (2016), Improving Variational
        Inference with Inverse Autoregressive Flow, equation 15 (appendix C.8).
    """

    def __init__(
        self,
        floor: float = 0.1,
        per: Literal["dimension", "site"] = "dimension",
        *,
        num_particles: int = 1,
        plate: str | None = "data",
    ) -> None:
        floor = require_number("floor", floor, 0.0)
        if per not in ("dimension", "site"):
            raise ValueError(f"per: expected 'dimension' or 'site', got {per!r}.")
        super().__init__(num_particles=require_positive_int("num_particles", num_particles))
        self.floor = floor
        self.per = per
        self.plate = plate

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the bound in nats, summed over the data (0-dim); its gradient is the estimator's."""
        losses = []
        for _ in range(self.num_particles):
            found = latents(model, guide, args, kwargs, self.plate, type(self).__name__)
            losses.append(-found.log_likelihood + sum(self._kl(found, name) for name in found.posterior))
        return torch.stack(losses).mean()

    def _kl(self, found: Latents, name: str) -> Tensor:
        """The KL term of a latent variable, each group at least the floor; scaled and summed."""
        p, q = found.prior[name], found.posterior[name]
        rows = found.data.size if found.data is not None and _within(q, found.data.name) else 1
        p_fn, q_fn, event_dim = p["fn"], q["fn"], 0
        if self.per == "dimension":
            event_dim = q_fn.event_dim
            p_fn, q_fn = (elementwise(fn, name, "TraceFreeBits_ELBO(per='dimension')") for fn in (p_fn, q_fn))
        kl = _kl_term(p_fn, q_fn, q["value"], in_closed_form=len(found.posterior) == 1)
        scale, mask = _lifted(q["scale"], event_dim), _lifted(q["mask"], event_dim)
        groups = scale_and_mask(kl, scale, mask).reshape(-1, *kl.shape[kl.dim() - event_dim :]).sum(0)
        floor = self.floor * rows * torch.as_tensor(q["scale"]).to(groups).mean()
        return torch.maximum(groups, floor).sum()


def _kl_term(p: Any, q: Any, value: Tensor, in_closed_form: bool) -> Tensor:
    if in_closed_form:
        try:
            return kl_divergence(q, p)
        except NotImplementedError:
            pass
    log_ratio: Tensor = q.log_prob(value) - p.log_prob(value)
    return log_ratio


def _within(site: Site, plate: str) -> bool:
    return any(frame.name == plate for frame in plates_of(site))


def _lifted(value: Any, event_dim: int) -> Any:
    """A scale or mask of a site's batch shape, with the dimensions of an event."""
    return value.reshape(value.shape + (1,) * event_dim) if isinstance(value, Tensor) and value.dim() else value
