"""The beta-TC objective: the KL term in three parts, each with a weight of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..._checks import require_number, require_positive_int
from .differentiable import DifferentiableELBO
from .latents import elementwise, latents, only_latent, scaled_sum

__all__ = ["KLParts", "TraceTC_ELBO"]


class KLParts(NamedTuple):
    """The three parts of the KL term, nats per datum; each ``(B,)`` from one draw of each datum."""

    mutual_information: Tensor  # between datum and latent variable under q
    total_correlation: Tensor  # KL(q(z) || prod_j q(z_j))
    dimension_wise_kl: Tensor  # sum_j KL(q(z_j) || p(z_j)), where p(z) has independent dimensions


class TraceTC_ELBO(DifferentiableELBO):
    r"""The evidence lower bound with a weight on each part of the KL term: beta-TCVAE.

    With the aggregate posterior :math:`q(z) = \frac{1}{N} \sum_n q(z \mid x_n)`, the mean over the data of
    :math:`KL(q(z \mid x_n) \| p(z))` is

    .. math:: \underbrace{I_q(n; z)}_{\alpha} + \underbrace{KL\big(q(z) \| \textstyle\prod_j q(z_j)\big)}_{\beta} +
        \underbrace{\mathbb{E}_q \log \textstyle\prod_j q(z_j) - \mathbb{E}_q \log p(z)}_{\gamma}

    and the objective multiplies the three by :math:`\alpha, \beta, \gamma`: with 1, 1, 1 it is the ELBO, draw by draw,
    and a larger :math:`\beta` asks for independent dimensions of q(z).

    The densities q(z) and q(z_j) at a draw z of datum b are estimated from the batch:

    - ``"stratified"``: :math:`\frac{1}{N} q(z \mid x_b) + \frac{N - 1}{N} \frac{1}{B - 1} \sum_{c \ne b} q(z \mid
      x_c)`, unbiased for batches drawn without replacement, and exact where the batch is the whole set.
    - ``"weighted"``: :math:`\frac{1}{N B} \sum_c q(z \mid x_c)`, the paper's simpler one, which is too small.

    Their logarithms are biased for small batches. N is the size of the plate (``size=`` of ``VAE.model``): without it
    the batch passes for the whole set. The value is minus the ELBO where all weights are 1, and no bound otherwise.

    Args:
        beta: weight of the total correlation.
        alpha: weight of the mutual information.
        gamma: weight of the last part.
        sampling: how q(z) is estimated, see above.
        site: name of the latent variable, a vector per datum with independent dimensions in q(z|x). The only one by
            default; other latent variables keep their KL terms.
        num_particles: how often model and guide are run; their mean is the loss.
        plate: name of the plate of the data. Where there is one plate alone, it is taken, whatever its name.

    Raises:
        ValueError: an argument out of range; on a step, a batch of one datum, a latent variable that is not as
            described.

    Example:
        >>> import pyro_vae as pv
        >>> _ = torch.manual_seed(0)
        >>> vae = pv.VAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=())),
        ...     pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=())),
        ... )
        >>> objective = TraceTC_ELBO(beta=6.0)
        >>> svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-3}), objective)
        >>> loss = svi.step(torch.ones(5, 6), size=50)
        >>> [part.shape for part in objective.parts(vae.model, vae.guide, torch.ones(5, 6), size=50)]
        [torch.Size([5]), torch.Size([5]), torch.Size([5])]

    Source:
        R. T. Q. Chen, X. Li, R. Grosse, D. Duvenaud (2018), Isolating Sources of Disentanglement in Variational
        Autoencoders, equations 2 to 4 and appendix C; the strata here are the datum itself and all others.
    """

    def __init__(
        self,
        beta: float = 6.0,
        *,
        alpha: float = 1.0,
        gamma: float = 1.0,
        sampling: Literal["stratified", "weighted"] = "stratified",
        site: str | None = None,
        num_particles: int = 1,
        plate: str | None = "data",
    ) -> None:
        weights = {"alpha": alpha, "beta": beta, "gamma": gamma}
        alpha, beta, gamma = (require_number(name, value, 0.0) for name, value in weights.items())
        if sampling not in ("stratified", "weighted"):
            raise ValueError(f"sampling: expected 'stratified' or 'weighted', got {sampling!r}.")
        super().__init__(num_particles=require_positive_int("num_particles", num_particles))
        self.weights = (alpha, beta, gamma)
        self.sampling = sampling
        self.site = site
        self.plate = plate

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the objective in nats, summed over the data (0-dim); its gradient is the estimator's."""
        losses = []
        for _ in range(self.num_particles):
            log_likelihood, parts, site, other_kl = self._run(model, guide, args, kwargs)
            weighted = sum(weight * part for weight, part in zip(self.weights, parts, strict=True))
            losses.append(-log_likelihood + scaled_sum(torch.as_tensor(weighted), site) + other_kl)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def parts(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> KLParts:
        """The three parts of the KL term, unweighted, from one draw of each datum: ``(B,)`` each, nats."""
        return self._run(model, guide, args, kwargs)[1]

    def _run(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, KLParts, Any, Tensor]:
        found = latents(model, guide, args, kwargs, self.plate, "TraceTC_ELBO")
        p, q = only_latent(found, self.site, "TraceTC_ELBO")
        data = found.data
        assert data is not None  # only_latent has seen to it
        rows, size = data.size, data.size * data.scale
        if rows < 2:
            raise ValueError("TraceTC_ELBO: expected a batch of at least two data, to estimate q(z), got one.")
        fn = elementwise(q["fn"], q["name"], "TraceTC_ELBO")
        z = q["value"]
        densities = fn.log_prob(z.unsqueeze(1)).flatten(2)  # [b, c, j]: log q(z_bj | x_c)
        own = torch.eye(rows, dtype=torch.bool, device=z.device)
        if self.sampling == "stratified":
            shares = torch.where(own, 1 / size, (1 - 1 / size) / (rows - 1)).to(densities)
        else:
            shares = torch.full_like(densities[..., 0], 1 / (size * rows))
        log_q = densities.sum(-1)
        log_aggregate = torch.logsumexp(log_q + shares.log(), dim=1)
        log_marginals = torch.logsumexp(densities + shares.log().unsqueeze(-1), dim=1).sum(-1)
        log_conditional = q["unscaled_log_prob"]
        parts = KLParts(
            log_conditional - log_aggregate, log_aggregate - log_marginals, log_marginals - p["unscaled_log_prob"]
        )
        others = [
            found.posterior[name]["log_prob"].sum() - found.prior[name]["log_prob"].sum()
            for name in found.posterior
            if name != q["name"]
        ]
        return found.log_likelihood, parts, q, torch.as_tensor(sum(others))
