"""Probabilistic principal component analysis: the linear-Gaussian VAE, whose posterior and p(x) are exact."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._checks import require_event_shape, require_float, require_positive_int
from ..likelihoods import GaussianLikelihood
from ..priors import StandardNormalPrior
from .vae import VAE, naming_what_is_not_finite

__all__ = ["ProbabilisticPCA"]


class ProbabilisticPCA(VAE):
    r"""Probabilistic principal component analysis: a VAE with a linear decoder and the exact posterior as its guide.

    .. code-block:: text

        model                             guide
        z ~ N(0, I)                       z ~ p(z|x) = N(P^-1 W^T (x - m) / s^2, P^-1),   P = I + W^T W / s^2
        x ~ N(W z + m, s^2 I)

    The guide has no parameters of its own: it is the posterior of the model as it is. So every importance weight is
    p(x), ``pyro_vae.bounds`` gives log p(x) itself with one particle, and SVI maximizes the exact log-likelihood. Use
    ``Trace_ELBO``, whose gradient is then that of log p(x), without noise; objectives that leave out the score of q
    have noise here.

    ``ProbabilisticPCA.fit(x, latent_dim)`` has the maximum-likelihood parameters in closed form, for data without gaps.
    With ``mask=``, or ``missing=True`` and NaN, the posterior is that given the observed elements, exact too; then
    train with SVI. Sites, plate and methods are those of ``VAE``.

    Args:
        data_dim: d, elements of a datum.
        latent_dim: k, below d.
        missing: as in ``VAE``.
        name: as in ``VAE``.

    Raises:
        ValueError: ``data_dim`` or ``latent_dim`` is no integer of at least 1, or the latter not below the former.

    Example:
        >>> import pyro_vae as pv
        >>> x = torch.randn(100, 2) @ torch.randn(2, 5) + 0.1 * torch.randn(100, 5)
        >>> ppca = pv.ProbabilisticPCA.fit(x, latent_dim=2)
        >>> elbo, iwae = pv.bounds(ppca.model, ppca.guide, x, num_particles=1)
        >>> bool((iwae - ppca.log_likelihood(x)).abs().max() < 1e-4)
        True

    Source:
        Tipping and Bishop (1999), Probabilistic Principal Component Analysis, equations 2, 4, 6 to 8.
    """

    def __init__(
        self, data_dim: int, latent_dim: int, *, missing: bool = False, name: str = "probabilistic_pca"
    ) -> None:
        data_dim = require_positive_int("data_dim", data_dim)
        if require_positive_int("latent_dim", latent_dim) >= data_dim:
            raise ValueError(
                f"latent_dim: expected at most {data_dim - 1}, one below the number of elements of a datum, got "
                f"{latent_dim}: no variance would be left for the noise."
            )
        likelihood = GaussianLikelihood(nn.Linear(latent_dim, data_dim), event_shape=(data_dim,), min_scale=1e-8)
        super().__init__(StandardNormalPrior(latent_dim), likelihood, self.encode, missing=missing, name=name)

    @classmethod
    def fit(cls, x: Tensor, latent_dim: int, *, missing: bool = False, name: str = "probabilistic_pca") -> Any:
        r"""Return the model of maximum likelihood, in closed form.

        .. math:: \sigma^2 = \frac{1}{d - k} \sum_{i > k} \lambda_i, \qquad
            W = U_k (\Lambda_k - \sigma^2 I)^{1/2}, \qquad m = \frac{1}{N} \sum_n x_n

        with the eigenvalues :math:`\lambda_1 \geq \lambda_2 \dots` and eigenvectors U of the covariance of the data,
        computed in float64. W is unique up to a rotation of z; here the components are ordered by variance, and the
        largest element of each column is positive.

        Args:
            x: data ``(N, d)``; the model has their dtype and device.
            latent_dim: k.
            missing: as in ``VAE``, for data to come.
            name: as in ``VAE``.

        Raises:
            TypeError: ``x`` is not a float tensor.
            ValueError: ``x`` is not of shape ``(N, d)`` or not finite; or it lies in k dimensions, so that the noise
                would be 0.
        """
        require_float("x", x)
        if x.ndim != 2 or not len(x):
            raise ValueError(f"x: expected shape (N, d), got {tuple(x.shape)}. Write images as x.flatten(1).")
        if not x.isfinite().all():
            bad = x[~x.isfinite()][0].item()
            raise ValueError(
                f"x: expected finite values, got {bad}. There is no closed form with missing elements: build "
                "ProbabilisticPCA(data_dim, latent_dim, missing=True), and train it with SVI."
            )
        ppca = cls(x.shape[1], latent_dim, missing=missing, name=name)
        with torch.no_grad():
            data = x.double()
            mean = data.mean(0)
            eigenvalues, vectors = torch.linalg.eigh((data - mean).T @ (data - mean) / len(data))
            eigenvalues, vectors = eigenvalues.flip(0).clamp(min=0), vectors.flip(1)[:, :latent_dim]
            variance = eigenvalues[latent_dim:].mean()
            if variance <= 1e-12 * eigenvalues.sum():
                raise ValueError(
                    f"x: expected data that vary in more than latent_dim = {latent_dim} directions, got {len(x)} data "
                    f"that do not: the variance of the noise would be {variance.item():.3g}. Take a smaller latent_dim."
                )
            largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
            weight = vectors * largest.sign() * (eigenvalues[:latent_dim] - variance).clamp(min=0).sqrt()
            ppca.to(dtype=torch.float64, device=x.device)
            likelihood: Any = ppca.likelihood
            likelihood.network.weight.copy_(weight)
            likelihood.network.bias.copy_(mean)
            likelihood.scale.raw.copy_(likelihood.scale.inverse(variance.sqrt()))
        return ppca.to(x.dtype)

    def log_likelihood(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        r"""Return log p(x) of each datum, exact, in nats: of the observed elements, where some are missing.

        .. math:: \log p(x) = \log p(x \mid z) + \log p(z) - \log p(z \mid x)

        for any z, by Bayes' rule; z is the posterior mean.

        Args:
            x: data ``(*, d)``.
            mask: as in ``VAE.model``.

        Returns:
            ``*``.
        """
        q = self.encode(x, mask=mask)
        p = self.decode(q.mean, mask=self.observed(x, mask))
        log_px: Tensor = p.log_prob(x) + self.prior().log_prob(q.mean) - q.log_prob(q.mean)
        return log_px

    def encode(self, x: Tensor, *given: Any, mask: Tensor | None = None) -> dist.MultivariateNormal:
        """Return p(z|x), exact, of batch shape ``*`` for ``x`` ``(*, d)``, of which ``mask`` is observed.

        ``given`` is not used.
        """
        likelihood: Any = self.likelihood
        weight, mean = likelihood.network.weight, likelihood.network.bias  # (d, k), (d,)
        variance = likelihood.scale([]).square()
        require_float("x", x, weight.dtype)
        require_event_shape("x", x, mean.shape, "ProbabilisticPCA")
        observed = self.observed(x, mask)
        if observed is None:
            centered, products = x - mean, weight.T @ weight
        else:
            centered = torch.where(observed, x - mean, 0.0)
            squares = (weight[:, :, None] * weight[:, None, :]).flatten(1)  # (d, k^2)
            products = (observed.to(x.dtype) @ squares).unflatten(-1, (weight.shape[1], weight.shape[1]))
        precision = torch.eye(weight.shape[1], dtype=x.dtype, device=x.device) + products / variance
        factor = torch.linalg.cholesky(precision)
        loc = torch.cholesky_solve((centered @ weight / variance)[..., None], factor)[..., 0]
        with naming_what_is_not_finite(x, observed):
            return dist.MultivariateNormal(loc, precision_matrix=precision)
