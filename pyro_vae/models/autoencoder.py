"""The autoencoder: a code z = f(x) without a prior, and a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from .._checks import require_positive_int
from ..posteriors import DeltaPosterior
from .vae import VAE

__all__ = ["Autoencoder"]


class Autoencoder(VAE):
    r"""An autoencoder: a deterministic code, no prior, no density.

    .. code-block:: text

        model                                 guide
        z ~ 1 (improper: no prior)            z = f(x)
        x ~ p(x|z)

    It is ``VAE`` with an improper uniform prior and a point in place of the posterior, so that minus the loss is the
    log-likelihood of each datum given its own code, log p(x|f(x)): minus half the squared error with
    ``GaussianLikelihood(network, scale=1.0)``, up to a constant; minus the binary cross-entropy with
    ``BernoulliLikelihood(network)``. ``SVI`` or ``CompiledSVI`` with ``Trace_ELBO``, and ``fit``, train it; what
    ``fit`` calls ``train_elbo`` is the mean of log p(x|f(x)).

    That is no bound on log p(x), there being no p(x): ``pyro_vae.bounds`` and ``log_weights`` refuse it. Nor is there
    anything to draw codes from: ``sample`` refuses, until a density is fitted to the codes afterwards. Codes drawn from
    a density that they do not have, such as the standard normal, decode to noise. ::

        autoencoder.prior = pyro_vae.fit_prior(autoencoder, train, validation)      # a MixturePrior
        autoencoder.sample(100)

    With a prior, further training maximizes log p(x|z) + log p(z) at z = f(x).

    Args:
        encoder: network f, any module that maps ``(*, *E)`` to ``(*, D)``.
        likelihood: as in ``VAE``.
        latent_dim: D.
        missing: as in ``VAE``.
        name: as in ``VAE``.

    Raises:
        TypeError: ``likelihood`` is not callable, or ``encoder`` not a module.
        ValueError: ``latent_dim`` is no integer of at least 1; a code of another length.
        NotImplementedError: (from ``sample``) no prior was fitted.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> _ = torch.manual_seed(0)
        >>> likelihood = pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=(8,)))
        >>> autoencoder = Autoencoder(pv.MLP(6, 2, hidden_dims=(8,)), likelihood, latent_dim=2)
        >>> x = torch.rand(200, 6).round()
        >>> autoencoder.encode(x).mean.shape, autoencoder.reconstruct(x).shape  # the codes
        (torch.Size([200, 2]), torch.Size([200, 6]))
        >>> autoencoder.prior = pv.fit_prior(autoencoder, x[:150], x[150:], prior=pv.MixturePrior(2, 5), epochs=3)
        >>> autoencoder.sample(4).shape
        torch.Size([4, 6])

    Source:
        Hinton and Salakhutdinov (2006), Reducing the Dimensionality of Data with Neural Networks; for a density fitted
        to the codes afterwards Ghosh et al. (2020), From Variational to Deterministic Autoencoders, section 4.
    """

    def __init__(
        self,
        encoder: nn.Module,
        likelihood: Callable[..., Any],
        latent_dim: int,
        *,
        missing: bool = False,
        name: str = "autoencoder",
    ) -> None:
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder: expected a network, a torch.nn.Module, got {encoder!r}.")
        prior = ImproperPrior(require_positive_int("latent_dim", latent_dim))
        super().__init__(prior, likelihood, DeltaPosterior(encoder), missing=missing, name=name)

    def sample_latent(self, n: int, *given: Any) -> Tensor:
        """Draw ``n`` codes from the prior that was fitted to them."""
        if isinstance(self.prior, ImproperPrior):
            _refuse_draws()
        return super().sample_latent(n, *given)


class ImproperPrior(nn.Module):
    """No prior: the density 1 everywhere, which has no integral and no samples."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, *given: Any) -> Improper:
        """Return the improper distribution, of event shape ``(D,)``; ``given`` is not used."""
        return Improper(constraints.real_vector, (), (self.latent_dim,))


class Improper(dist.ImproperUniform):
    """Pyro's improper uniform distribution, its log-density on the device and of the dtype of the value."""

    def sample(self, sample_shape: Any = ()) -> Any:
        """Refuse to draw."""
        _refuse_draws()

    rsample = sample

    def log_prob(self, value: Tensor) -> Tensor:
        """Return zeros."""
        zeros: Tensor = super().log_prob(value).to(value)
        return zeros


def _refuse_draws() -> None:
    raise NotImplementedError(  # as Pyro's own, which some of its functions catch
        "sample: expected a prior, from which codes can be drawn; an autoencoder is trained without one. "
        "Fit it afterwards: autoencoder.prior = pyro_vae.fit_prior(autoencoder, train, validation)."
    )
