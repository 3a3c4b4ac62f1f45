"""Semi-amortized inference against the exact optimum of a diagonal normal on linear-Gaussian models."""

from __future__ import annotations

import copy
import math
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.evaluate import captured
from pyro_vae.evaluate.known_rows import KnownRows
from pyro_vae.evaluate.moved import Move, Moved
from tests import helpers

BOUNDS = sys.modules["pyro_vae.evaluate.bounds"]  # the package's `bounds` is the function


def correlated(k: int = 2, d: int = 6, n: int = 30) -> tuple[pv.VAE, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a linear-Gaussian VAE whose posterior is correlated and whose encoder is bad, data, mean, precision."""
    vae = helpers.linear_vae(d, k, scale=0.5).double()
    with torch.no_grad():
        vae.likelihood.network.weight.copy_(torch.randn(d, k) + torch.ones(d, 1))
        vae.posterior.network.weight.zero_()
        vae.posterior.network.bias.zero_()  # q(z|x) = N(0, 1) for every x
    x = vae.sample(n)
    weight, mean = vae.likelihood.network.weight.detach(), vae.likelihood.network.bias.detach()
    precision = torch.eye(k) + weight.T @ weight / 0.25
    return vae, x, torch.linalg.solve(precision, weight.T @ (x - mean).T / 0.25).T, precision


def test_a_bad_encoder_is_refined_to_the_exact_optimum():
    """The best diagonal normal has the exact mean and the inverse diagonal of the precision (Bishop 2006, 10.1.2)."""
    vae, x, mean, precision = correlated()
    before = copy.deepcopy(vae.state_dict())
    guide, gain = pv.refine(vae.model, vae.guide, x, steps=300, learning_rate=0.4)
    q = pyro.poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    scale = precision.diagonal() ** -0.5
    torch.testing.assert_close(q.stddev, scale.expand_as(q.stddev), rtol=0.1, atol=0)
    gap = (precision.diagonal().log().sum() - torch.logdet(precision)).item() / 2  # KL of the best diagonal normal
    posterior = dist.MultivariateNormal(mean, precision_matrix=precision)
    own = dist.MultivariateNormal(q.mean, scale_tril=torch.diag_embed(q.stddev))
    excess = torch.distributions.kl_divergence(own, posterior) - gap
    assert (excess > -1e-9).all()
    assert excess.max() < 0.05
    covariance = vae.likelihood.network.weight @ vae.likelihood.network.weight.T + 0.25 * torch.eye(6)
    exact = dist.MultivariateNormal(vae.likelihood.network.bias, covariance).log_prob(x).detach()
    elbo, iwae = pv.bounds(vae.model, guide, x, num_particles=2000)
    assert gap > 0.1
    assert (exact - elbo).mean().item() == pytest.approx(gap, abs=0.01)
    assert elbo.mean() < iwae.mean() < exact.mean() + 0.02
    # The gain, from the closed form of the bad encoder's ELBO.
    bad = dist.MultivariateNormal(torch.zeros(2, dtype=x.dtype), torch.eye(2, dtype=x.dtype))
    expected = torch.distributions.kl_divergence(bad, posterior) - gap
    assert gain.shape == (30,)
    assert gain.mean().item() == pytest.approx(expected.mean().item(), rel=0.1)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_nothing_is_gained_at_the_exact_posterior(linear_gaussian):
    vae, x = linear_gaussian.vae, linear_gaussian.x
    guide, gain = pv.refine(vae.model, vae.guide, x, steps=20, num_particles=2)
    assert gain.abs().max() < 1e-3
    torch.testing.assert_close(
        pv.bounds(vae.model, guide, x, num_particles=2).elbo, linear_gaussian.log_px, atol=1e-3, rtol=0
    )


def test_the_covariance_of_a_moved_distribution_is_that_of_its_draws():
    pyro.set_rng_seed(0)
    original = dist.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.9], [0.9, 1.0]]))
    moved = Moved(original, torch.tensor([1.0, -2.0]), torch.tensor([0.5, -0.5]))
    draws = moved.sample((100_000,))
    torch.testing.assert_close(draws.T.cov(), moved.covariance_matrix, rtol=0.02, atol=0.01)
    torch.testing.assert_close(moved.covariance_matrix.diagonal(), moved.variance)


@pytest.mark.slow
def test_the_guide_finds_its_data_in_any_order_and_batches(binary_data, make_vae):
    vae = make_vae()
    x = binary_data
    guide, gain = pv.refine(vae.model, vae.guide, x, steps=30, batch_size=10)

    def means(data):
        return pyro.poutine.trace(guide).get_trace(data).nodes["z"]["fn"].mean

    whole = means(x)
    order = torch.randperm(64)
    torch.testing.assert_close(means(x[order]), whole[order])
    torch.testing.assert_close(means(x[5:6].clone()), whole[5:6])
    torch.testing.assert_close(means(x[:1].expand(3, 6)), whole[:1].expand(3, 2))
    assert gain.mean() > 0
    # All that takes a model and a guide takes it.
    assert pv.log_weights(vae.model, guide, x, num_particles=3).shape == (3, 64)
    assert Predictive(vae.model, guide=guide, num_samples=5)(x[:7])["z"].shape == (5, 7, 2)
    pyro.set_rng_seed(0)
    loss = Trace_ELBO().loss(vae.model, guide, x, size=640, beta=0.5)
    pyro.set_rng_seed(0)
    again = Trace_ELBO().loss(vae.model, guide, x, size=640, beta=1.0)
    assert loss < again
    small = pv.bounds(vae.model, guide, x, num_particles=20, max_bytes=2000).elbo.mean()
    assert small.item() == pytest.approx(pv.bounds(vae.model, guide, x, num_particles=500).elbo.mean().item(), abs=0.3)
    assert (
        pv.bounds(vae.model, guide, x).elbo - pv.bounds(vae.model, vae.guide, x).elbo
    ).mean().item() == pytest.approx(gain.mean().item(), abs=0.1)


def test_a_large_evaluation_captures_the_refined_guide(binary_data, make_vae, monkeypatch):
    vae = make_vae()
    guide, _ = pv.refine(vae.model, vae.guide, binary_data, steps=5)
    made = []

    def captured_pass(*args, **kwargs):
        made.append(captured.captured_pass(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(BOUNDS, "_BYTES_TO_CAPTURE", 1)
    monkeypatch.setattr(BOUNDS, "captured_pass", captured_pass)
    by_graph = pv.bounds(vae.model, guide, binary_data, num_particles=500, compile="graph")
    assert len(made) == 1
    assert made[0] is not None
    by_pyro = pv.bounds(vae.model, guide, binary_data, num_particles=500, compile=False)
    assert by_graph.elbo.mean().item() == pytest.approx(by_pyro.elbo.mean().item(), abs=0.02)
    with pytest.raises(ValueError, match="guide: expected data that it was refined for"):
        pv.bounds(vae.model, guide, 1 - binary_data.roll(1, 1), num_particles=500, compile="graph")


@pytest.mark.parametrize("top_down", [False, True])
def test_all_layers_of_a_hierarchy_are_refined_and_still_depend_on_each_other(top_down):
    """Means that are off are put right: the exact posterior, whose layers are correlated, is found again."""
    vae, x, log_px = helpers.linear_hierarchy(3, top_down=top_down)
    with torch.no_grad():
        for posterior in vae.posteriors:
            posterior.network.bias[:2] += torch.tensor([0.4, -0.3])
    before = pv.bounds(vae.model, vae.guide, x, num_particles=500).elbo
    assert (log_px - before).mean() > 0.2
    guide, gain = pv.refine(vae.model, vae.guide, x, steps=200)
    elbo = pv.bounds(vae.model, guide, x, num_particles=500).elbo
    torch.testing.assert_close(elbo, log_px, rtol=0, atol=2e-3)
    assert (gain - (log_px - before)).mean().abs() < 0.05


@pytest.mark.parametrize("kind", ["normal", "full covariance", "scalar"])
def test_a_moved_distribution_is_the_one_that_it_is_compared_with(kind):
    shift, log_scale = torch.randn(4, 2), 0.3 * torch.randn(4, 2)
    loc, factor = torch.randn(4, 2), torch.randn(4, 2, 2).tril() * 0.3 + torch.eye(2)
    if kind == "full covariance":
        original = dist.MultivariateNormal(loc, scale_tril=factor)
        expected = dist.MultivariateNormal(
            loc + original.stddev * shift, scale_tril=log_scale.exp()[..., None] * factor
        )
    else:
        dims = 1 if kind == "normal" else 0
        scale = factor.diagonal(dim1=-2, dim2=-1).abs()
        original = dist.Normal(loc, scale).to_event(dims)
        expected = dist.Normal(loc + scale * shift, scale * log_scale.exp()).to_event(dims)
    move = Move(shift, log_scale, -2)
    value = torch.randn(4, 2)
    for moved in (move.of(original), Moved(original, shift, log_scale), move.along_the_path(original)):
        torch.testing.assert_close(moved.log_prob(value), expected.log_prob(value))
        torch.testing.assert_close(moved.mean, expected.mean)
        torch.testing.assert_close(moved.stddev, expected.stddev)
        wide = moved.expand((5, *expected.batch_shape))
        assert wide.rsample().shape == (5, 4, 2)
        draws = moved.rsample((20_000,))
        error = (draws.mean(0) - expected.mean) / expected.stddev * 20_000**0.5
        assert error.abs().max() < 4.5
        torch.testing.assert_close(draws.std(0), expected.stddev, rtol=0.03, atol=0)


def test_given_and_masked_data_are_cut_with_the_data(binary_data):
    posterior = pv.Conditional(pv.DiagonalNormalPosterior(nn.Linear(2 * 6 + 1, 4)))
    vae = pv.VAE(pv.StandardNormalPrior(2), pv.Conditional(pv.BernoulliLikelihood(nn.Linear(2 + 1, 6))), posterior)
    y, mask = torch.rand(64, 1), torch.rand(64, 6) < 0.8
    guide, gain = pv.refine(vae.model, vae.guide, binary_data, y, mask=mask, steps=10, batch_size=30)
    assert gain.shape == (64,)
    assert pv.bounds(vae.model, guide, binary_data, y, mask=mask, num_particles=3).elbo.isfinite().all()
    with pytest.raises(ValueError, match=r"guide: expected data that it was refined for, got .* of 64 rows of other"):
        guide(binary_data, y.flip(0), mask=mask)


def test_an_encoder_without_moments_starts_from_its_draws(binary_data):
    flow = pv.autoregressive_flow(2, context_dim=3, inverse=True)
    posterior = pv.FlowPosterior(nn.Linear(6, 2 * 2 + 3), flow, context_dim=3)
    vae = pv.VAE(pv.StandardNormalPrior(2), pv.BernoulliLikelihood(nn.Linear(2, 6)), posterior)
    guide, gain = pv.refine(vae.model, vae.guide, binary_data, steps=50)
    assert gain.mean() > 0
    assert pv.bounds(vae.model, guide, binary_data, num_particles=3).elbo.shape == (64,)


def test_what_is_enumerated_in_the_model_is_summed_out():
    x = torch.tensor([-2.0, 0.3, 2.5])

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(2.0 * y - 1, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    refined, gain = pv.refine(model, guide, x)
    assert (gain > 0).all()
    assert pv.log_weights(model, refined, x.flip(0), num_particles=4).shape == (4, 3)


def test_bad_input_is_refused(binary_data, make_vae):
    vae = make_vae()
    for options in ({"steps": 0}, {"num_particles": 1.5}, {"batch_size": -1}):
        (name,) = options
        with pytest.raises(ValueError, match=rf"{name}: expected an integer of at least 1"):
            pv.refine(vae.model, vae.guide, binary_data, **options)
    with pytest.raises(ValueError, match=r"learning_rate: expected a finite number above 0, got 0"):
        pv.refine(vae.model, vae.guide, binary_data, learning_rate=0)
    with pytest.raises(TypeError, match=r"args: expected the data as positional arguments"):
        pv.refine(vae.model, vae.guide)
    guide = pv.refine(vae.model, vae.guide, binary_data, steps=2).guide
    with pytest.raises(ValueError, match=r"guide: expected data that it was refined for, got 2 of 3 rows of other val"):
        guide(torch.cat([binary_data[:1], torch.full((2, 6), 0.5)]))

    def positive(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(torch.zeros(len(x), 2), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"site 'z': expected a latent variable with real values"):
        pv.refine(vae.model, positive, binary_data)
    point = pv.VAE(vae.prior, vae.likelihood, pv.DeltaPosterior(nn.Linear(6, 2)))
    with pytest.raises(ValueError, match=r"site 'z' of the guide is a point mass"):
        pv.refine(point.model, point.guide, binary_data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_rows_are_found_by_their_values(dtype):
    """10,000 different rows of 40 bits each, in any order; a row that differs in one element is not known."""
    bits = torch.randint(2, (10_000, 40))
    x = bits.to(dtype)
    known = KnownRows([x, torch.tensor(3.0)])
    order = torch.randperm(10_000)
    rows, are_known = known.find([x[order], torch.tensor(3.0)])
    assert are_known.all()
    assert torch.equal(x[rows], x[order])
    other = bits.clone()
    other[:, 7] = 1 - other[:, 7]
    assert not known.find([other[:100].to(dtype)])[1].any()
    if dtype.is_floating_point:
        holes = x.clone()
        holes[:, 3] = math.nan
        assert KnownRows([holes]).find([holes[5:9].clone()])[1].all()
