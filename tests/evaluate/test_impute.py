"""Imputation of missing elements, against the exact conditional distributions."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyro_vae as pv
from tests.helpers import linear_gaussian

N, E, D = 40, 6, 2
NAN = math.nan


class Exact:
    """A linear-Gaussian model of data with missing elements, its exact posterior, and p(x_missing | x_observed)."""

    def __init__(self) -> None:
        lg = linear_gaussian(n=N, d=E, k=D, dtype=torch.float64)
        network = lg.vae.likelihood.network
        self.weight, self.bias = network.weight.detach(), network.bias.detach()
        self.scale = lg.vae.likelihood(torch.zeros(D).double()).base_dist.scale.flatten()[0].item()
        generator = torch.Generator().manual_seed(0)
        self.mask = torch.rand(N, E, generator=generator) < 0.6
        self.mask[0], self.mask[1] = True, False  # nothing missing, and everything
        self.x = lg.x.where(self.mask, NAN)

    def model(self, x: Tensor, mask: Tensor | None = None) -> None:
        mask = ~x.isnan() if mask is None else mask
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D).double(), 1.0).to_event(1))
            p = dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1)
            pyro.sample("x", pv.observed_elements(p, mask), obs=x)

    def posterior(self, x: Tensor, mask: Tensor) -> Any:
        rows = self.weight * mask[..., None]  # (B, E, D)
        precision = torch.eye(D) + rows.mT @ rows / self.scale**2
        difference = (x.nan_to_num() - self.bias) * mask
        loc = torch.linalg.solve(precision, (rows.mT @ difference[..., None]) / self.scale**2)[..., 0]
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def guide(self, x: Tensor, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x, ~x.isnan() if mask is None else mask))

    def prior(self, x: Tensor, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(D).double(), 1.0).to_event(1))

    def moments(self) -> tuple[Tensor, Tensor]:
        """E[x | x_observed] and the covariance of its missing elements, 0 elsewhere."""
        q = self.posterior(self.x, self.mask)
        mean = q.loc @ self.weight.T + self.bias
        covariance = self.weight @ q.covariance_matrix @ self.weight.T + self.scale**2 * torch.eye(E)
        missing = ~self.mask
        return mean.where(missing, self.x), covariance * missing[:, None] * missing[..., None]


@pytest.mark.parametrize("by", ["NaN", "mask"])
@pytest.mark.parametrize("guide", ["guide", "prior"])
def test_draws_and_means_are_those_of_the_exact_conditional(guide: str, by: str) -> None:
    """With the exact posterior as guide, and with the prior, which importance resampling must correct."""
    pyro.set_rng_seed(0)
    exact = Exact()
    x, mask = (exact.x, None) if by == "NaN" else (exact.x.nan_to_num(123.0), exact.mask)
    particles = 20_000
    samples = 4000
    mean, draws, effective = pv.impute(
        exact.model, getattr(exact, guide), x, mask=mask, num_particles=particles, num_samples=samples
    )
    expected_mean, covariance = exact.moments()
    assert draws.shape == (samples, N, E)
    assert torch.equal(draws[:, exact.mask], exact.x[exact.mask].expand(samples, -1))
    assert torch.equal(mean[exact.mask], exact.x[exact.mask])
    error = 6 * covariance.diagonal(dim1=1, dim2=2).sqrt() / samples**0.5
    error = error * (1 + (samples / effective[:, None]).sqrt())  # draws share their particles
    assert ((draws.mean(0) - expected_mean).abs() <= error + 1e-9).all()
    centered = draws - draws.mean(0)
    found = torch.einsum("sni,snj->nij", centered, centered) / samples
    size = covariance.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
    assert ((found - covariance).abs() <= 0.15 * size * (1 if guide == "guide" else 2) + 1e-9).all()
    assert ((mean - expected_mean).abs() <= error + 1e-9).all()
    if guide == "guide":
        torch.testing.assert_close(effective, torch.full((N,), float(particles)).double())
    else:
        assert (effective[2:] < 10_000).any()


def test_a_wrong_guide_without_weights_would_be_seen(monkeypatch: Any) -> None:
    """A planted fault: uniform weights leave the draws those of the prior, and the test above sees it."""
    monkeypatch.setattr(Tensor, "softmax", lambda self, dim: torch.full_like(self, 1 / self.shape[dim]))
    with pytest.raises(AssertionError):
        test_draws_and_means_are_those_of_the_exact_conditional("prior", "NaN")


def vae(likelihood: Any = pv.BernoulliLikelihood, width: int = E) -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(
        pv.StandardNormalPrior(D),
        likelihood(pv.MLP(D, width, hidden_dims=(5,))),
        pv.DiagonalNormalPosterior(pv.MLP(2 * E, 2 * D, hidden_dims=(5,))),
        missing=True,
    )


def test_chunks_do_not_change_what_is_drawn_from() -> None:
    model = vae()
    torch.manual_seed(1)
    x = torch.bernoulli(torch.full((30, E), 0.5)).where(torch.rand(30, E) < 0.5, NAN)
    whole = pv.impute(model.model, model.guide, x, num_particles=2000, num_samples=3)
    cut = pv.impute(model.model, model.guide, x, num_particles=2000, num_samples=3, max_bytes=10**6)
    assert (whole.mean - cut.mean).abs().max() < 0.1
    assert cut.draws.shape == (3, 30, E)
    assert set(cut.draws.unique().tolist()) == {0.0, 1.0}


def test_data_without_a_mean_take_that_of_the_draws() -> None:
    model = vae(lambda network: pv.StudentTLikelihood(network, df=1.0))
    x = torch.randn(5, E)
    x[:, 0] = NAN
    mean, draws, _ = pv.impute(model.model, model.guide, x, num_particles=50, num_samples=20)
    torch.testing.assert_close(mean[:, 0], draws[:, :, 0].mean(0))


def test_what_is_given_goes_to_both() -> None:
    model = pv.VAE(
        pv.StandardNormalPrior(D),
        pv.Conditional(pv.BernoulliLikelihood(pv.MLP(D + 2, E, hidden_dims=()))),
        pv.Conditional(pv.DiagonalNormalPosterior(pv.MLP(2 * E + 2, 2 * D))),
        missing=True,
    )
    with torch.no_grad():  # x is y, whatever z
        model.likelihood.part.network.output.weight.zero_()
        model.likelihood.part.network.output.weight[:, D:] = 50 * torch.tensor([1.0, -1.0])
        model.likelihood.part.network.output.bias.zero_()
    y = torch.eye(2)[[0, 1, 0, 1]]
    mean, draws, _ = pv.impute(model.model, model.guide, torch.full((4, E), NAN), y, num_particles=10, num_samples=3)
    torch.testing.assert_close(mean, y[:, :1].expand(4, E))
    assert torch.equal(draws, y[:, :1].expand(3, 4, E))


def test_faults_are_named() -> None:
    model, x = vae(), torch.full((3, E), NAN)
    with pytest.raises(ValueError, match=r"site: expected the name of an observed site of the model, got 'y'.*'x'"):
        pv.impute(model.model, model.guide, x, site="y")
    for name in ("num_particles", "num_samples", "max_bytes"):
        with pytest.raises(ValueError, match=f"{name}: expected an integer of at least 1"):
            pv.impute(model.model, model.guide, x, **{name: 0})
    with pytest.raises(TypeError, match="x: expected floating-point"):
        pv.impute(model.model, model.guide, torch.ones(3, E, dtype=torch.long))
    with pytest.raises(ValueError, match="mask: expected a boolean tensor of the shape of x"):
        pv.impute(model.model, model.guide, x, mask=torch.ones(3, 2, dtype=torch.bool))

    def forgetful(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(z[..., None], 1.0, validate_args=False).expand([*z.shape, E]).to_event(1), obs=x
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match="log-weights that are not NaN, got NaN at row 0"),
    ):
        pv.impute(forgetful, guide, x)

    def pixels(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", E, dim=-1):
                p = dist.Normal(z.expand(*z.shape[:-1], E), 1.0)
                with poutine.mask(mask=~x.isnan()):
                    pyro.sample("x", p, obs=x.nan_to_num())

    def pixels_guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"site 'x': expected batch shape \(K, B\)"):
        pv.impute(pixels, pixels_guide, x)


def test_data_of_density_zero_are_an_error() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).expand([*z.shape, E]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.zeros(9, E)
    x[7, 0] = 1e30  # whose log-density is minus infinity in float32
    with pytest.raises(
        ValueError, match="expected data of positive density, got density 0 for row 7 under all 20 draws"
    ):
        pv.impute(model, guide, x, num_particles=20)


def test_a_frame_is_refused_with_the_way_to_a_tensor():
    class Frame:  # as pandas.DataFrame
        iloc = None

    with pytest.raises(TypeError, match=r"x: expected a torch.Tensor, got Frame. .* pyro_vae.data.table\(x\).values"):
        pv.impute(lambda x: None, lambda x: None, Frame())
