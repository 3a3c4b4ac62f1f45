"""The contract of every prior, posterior, likelihood and network, held against each of them."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import likelihoods, networks, posteriors, priors

D, E = 2, 3
PRIORS = {"StandardNormalPrior": lambda: pv.StandardNormalPrior(D)}
POSTERIORS = {
    "DiagonalNormalPosterior": lambda: pv.DiagonalNormalPosterior(pv.MLP(E, 2 * D, hidden_dims=(4,))),
}
LIKELIHOODS = {
    "BernoulliLikelihood": lambda: pv.BernoulliLikelihood(pv.MLP(D, E, hidden_dims=(4,))),
    "ContinuousBernoulliLikelihood": lambda: pv.ContinuousBernoulliLikelihood(pv.MLP(D, E, hidden_dims=(4,))),
    "GaussianLikelihood fixed": lambda: pv.GaussianLikelihood(pv.MLP(D, E, hidden_dims=(4,)), scale=0.5),
    "GaussianLikelihood shared": lambda: pv.GaussianLikelihood(pv.MLP(D, E, hidden_dims=(4,)), scale="shared"),
    "GaussianLikelihood per-dimension": lambda: pv.GaussianLikelihood(
        pv.MLP(D, E, hidden_dims=(4,)), scale="per-dimension"
    ),
    "GaussianLikelihood predicted": lambda: pv.GaussianLikelihood(
        pv.MLP(D, 2 * E, hidden_dims=(4,)), scale="predicted"
    ),
}
NETWORKS = {
    "MLP": lambda: pv.MLP(E, D, hidden_dims=(4,)),
    "AnyLeadingDims": lambda: pv.AnyLeadingDims(nn.Sequential(nn.Flatten(1), nn.Linear(E, D)), event_dim=1),
}
ALL = {**PRIORS, **POSTERIORS, **LIKELIHOODS, **NETWORKS}
LEADING = [(), (5,), (4, 5)]


@pytest.mark.parametrize(
    ("file", "registry"),
    [(priors, PRIORS), (posteriors, POSTERIORS), (likelihoods, LIKELIHOODS), (networks, NETWORKS)],
)
def test_every_exported_part_is_listed(file, registry):
    assert set(file.__all__) == {name.split()[0] for name in registry}


def run(part, leading=(5,), dtype=torch.float32):
    """A part's output on an input that suits it, and a value to score where the output is a distribution."""
    if isinstance(part, pv.StandardNormalPrior):
        return part(), torch.randn(*leading, D, dtype=dtype)
    if isinstance(part, pv.DiagonalNormalPosterior):
        return part(torch.rand(*leading, E, dtype=dtype)), torch.randn(*leading, D, dtype=dtype)
    if isinstance(part, (pv.MLP, pv.AnyLeadingDims)):
        return part(torch.rand(*leading, E, dtype=dtype)), None
    return part(torch.randn(*leading, D, dtype=dtype)), torch.randint(2, (*leading, E)).to(dtype)


@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("name", ALL)
def test_shapes_with_any_leading_dimensions(name, leading):
    out, value = run(ALL[name](), leading)
    if value is None:
        assert out.shape == (*leading, D)
        return
    assert out.event_shape == value.shape[-1:]
    assert out.batch_shape == (() if name in PRIORS else leading)
    assert out.log_prob(value).shape == leading
    assert out.mean.shape == out.batch_shape + out.event_shape
    assert out.sample((7,)).shape == (7, *out.batch_shape, *out.event_shape)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_gets_a_gradient(name):
    part = ALL[name]()
    out, value = run(part)
    if name in PRIORS:
        assert not list(part.parameters())  # a prior with parameters goes through what follows
        return
    (out if value is None else out.log_prob(value)).sum().backward()
    for parameter_name, parameter in part.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ALL)
def test_state_dict_round_trip(name, tmp_path):
    first, second = ALL[name](), ALL[name]()
    for parameter in first.parameters():
        nn.init.normal_(parameter)
    torch.save(first.state_dict(), tmp_path / "part.pt")
    second.load_state_dict(torch.load(tmp_path / "part.pt", weights_only=True))
    torch.manual_seed(3)
    out, value = run(first)
    torch.manual_seed(3)
    again, _ = run(second)
    assert torch.equal(out, again) if value is None else torch.equal(out.log_prob(value), again.log_prob(value))


@pytest.mark.parametrize("name", ALL)
def test_double_precision_throughout(name):
    out, value = run(ALL[name]().double(), dtype=torch.float64)
    assert (out if value is None else out.log_prob(value)).dtype == torch.float64


@pytest.mark.parametrize("name", [*PRIORS, *POSTERIORS, *LIKELIHOODS])
def test_density_integrates_to_one(name):
    part = ALL[name]().double()
    p, _ = run(part, leading=(), dtype=torch.float64)
    with torch.no_grad():
        if isinstance(part, pv.BernoulliLikelihood):
            grid = torch.tensor(list(itertools.product([0.0, 1.0], repeat=E)), dtype=torch.float64)
            mass = p.log_prob(grid).exp().sum()
        else:
            # The elements are independent, so one element's integral tells: the others stay at a point and divide out.
            low, high = (0.0, 1.0) if isinstance(part, pv.ContinuousBernoulliLikelihood) else (-12.0, 12.0)
            n = 20_001
            line = torch.linspace(low, high, n, dtype=torch.float64)
            mass = torch.ones((), dtype=torch.float64)
            for i in range(p.event_shape[0]):
                point = p.mean.clone().expand(n, -1).clone()
                reference = p.base_dist.log_prob(p.mean).sum() - p.base_dist.log_prob(p.mean)[i]
                point[:, i] = line
                mass *= torch.trapezoid((p.log_prob(point) - reference).exp(), line)
    assert mass.item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_agree_with_the_density(name):
    torch.manual_seed(0)
    p, _ = run(LIKELIHOODS[name](), leading=())
    n = 40_000
    x = p.sample((n,))
    error = (x.mean(0) - p.mean) / (p.variance / n).sqrt()
    assert error.abs().max() < 4.5
    # E[-log p] = entropy, found independently from the density's elements.
    if not name.startswith("Bernoulli"):
        spread = (x.var(0) / p.variance - 1).abs().max()
        assert spread < 0.05


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_output_bias_starts_at_the_mean_of_the_data(name):
    torch.manual_seed(0)
    x = torch.rand(2000, E) * torch.tensor([0.2, 1.0, 0.6])
    if name == "BernoulliLikelihood":
        x = (torch.rand(2000, E) < torch.tensor([0.1, 0.5, 0.8])).float()
    likelihood = LIKELIHOODS[name]()
    nn.init.zeros_(likelihood.network.output.weight)
    likelihood.initialize_output_bias(x)
    p = likelihood(torch.zeros(D))
    torch.testing.assert_close(p.mean, x.mean(0), rtol=1e-4, atol=1e-4)
    if "shared" in name:
        assert p.base_dist.scale[0].item() == pytest.approx(x.var(0, correction=0).mean().sqrt().item(), rel=1e-4)
    elif "per-dimension" in name or "predicted" in name:
        torch.testing.assert_close(p.base_dist.scale, x.std(0, correction=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_output_bias_of_constant_elements_is_finite(name):
    likelihood = LIKELIHOODS[name]()
    x = torch.tensor([[0.0, 1.0, 0.5], [0.0, 1.0, 0.5]])
    likelihood.initialize_output_bias(x)
    log_prob = likelihood(torch.zeros(D)).log_prob(x.round())
    assert log_prob.isfinite().all()
    if "Gaussian" not in name:
        with pytest.raises(ValueError, match=r"x: expected values in \[0, 1\], got values from 0 to 255"):
            likelihood.initialize_output_bias(x * 255)


def test_the_density_of_constant_elements_is_bounded():
    """By the logit's bound L: log L a black pixel, whatever the network says."""
    likelihood = pv.ContinuousBernoulliLikelihood(nn.Linear(1, 2), max_logit=20.0)
    with torch.no_grad():
        likelihood.network.bias.copy_(torch.tensor([-1e6, 1e6]))
        likelihood.network.weight.zero_()
    log_prob = likelihood(torch.zeros(1)).log_prob(torch.tensor([0.0, 1.0]))
    assert log_prob.item() == pytest.approx(2 * math.log(20.0), rel=1e-5)
    with pytest.raises(ValueError, match=r"max_logit: expected a number above 0, got 0"):
        pv.ContinuousBernoulliLikelihood(nn.Linear(1, 2), max_logit=0)


@pytest.mark.parametrize("scale", ["shared", "per-dimension", "predicted"])
def test_learned_scale_cannot_run_off_to_zero(scale):
    likelihood = pv.GaussianLikelihood(nn.Linear(D, 2 * E if scale == "predicted" else E), scale=scale, min_scale=0.01)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.fill_(-1e4)
    p = likelihood(torch.ones(D))
    assert p.base_dist.scale.min() >= 0.01
    assert torch.isfinite(p.log_prob(p.mean))


def test_fixed_scale_is_the_one_given():
    p = pv.GaussianLikelihood(nn.Linear(D, E), scale=0.3)(torch.zeros(D))
    expected = -0.5 * E * math.log(2 * math.pi * 0.3**2)
    assert p.log_prob(p.mean).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("logit", [-300.0, -40.0, -3.0, -0.099, -1e-6, 0.0, 1e-3, 0.3, 17.0, 250.0])
def test_continuous_bernoulli_is_exact_at_every_logit(logit):
    """In float32, at logits where the clamped constant of torch loses up to 95 % of the mass."""
    likelihood = pv.ContinuousBernoulliLikelihood(nn.Linear(1, 1), max_logit=math.inf)
    with torch.no_grad():
        likelihood.network.weight.zero_()
        likelihood.network.bias.fill_(logit)
        p = likelihood(torch.zeros(1))
        # A grid that is dense at both ends, where the mass of extreme logits is.
        t = torch.linspace(-17, 17, 20_001, dtype=torch.float64)
        line = torch.sigmoid(t)
        density = p.log_prob(line.float()[:, None]).double().exp()
        # Beyond the grid the density is constant to rounding; the ends of [0, 1] carry what the sigmoid cuts off.
        mass = torch.trapezoid(density, line) + density[0] * line[0] + density[-1] * (1 - line[-1])
        mean = torch.trapezoid(density * line, line) + density[-1] * (1 - line[-1])
    assert mass.item() == pytest.approx(1.0, abs=1e-3)
    assert p.mean.item() == pytest.approx(mean.item(), abs=1e-3)


def test_continuous_bernoulli_gradients_agree_with_differences():
    from pyro_vae.likelihoods.continuous_bernoulli import ContinuousBernoulli

    logits = torch.tensor([-30.0, -2.0, -0.1001, -0.0999, -1e-4, 0.0, 0.05, 5.0], dtype=torch.float64).requires_grad_()
    x = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda eta: ContinuousBernoulli(logits=eta).log_prob(x), logits)
    # d/d eta log p(x) = x - E[x], so its zero-mean is the score identity.
    (gradient,) = torch.autograd.grad(ContinuousBernoulli(logits=logits).log_prob(x).sum(), logits)
    torch.testing.assert_close(gradient, x - ContinuousBernoulli(logits=logits).mean.detach(), rtol=1e-9, atol=1e-9)


def test_continuous_bernoulli_moments_and_divergence_are_integrals():
    from pyro_vae.likelihoods.continuous_bernoulli import ContinuousBernoulli

    logits = torch.tensor([-40.0, -3.0, -0.0999, -0.05, 0.0, 1e-3, 0.09, 0.2, 8.0, 30.0], dtype=torch.float64)
    p = ContinuousBernoulli(logits=logits)
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:, None]
    density = p.log_prob(x).exp()

    def expected(values):
        return torch.trapezoid(density * values, x, dim=0)

    torch.testing.assert_close(p.mean, expected(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(p.variance, expected((x - p.mean) ** 2), rtol=1e-6, atol=0)
    torch.testing.assert_close(p.entropy(), expected(-p.log_prob(x)), rtol=0, atol=1e-6)
    q = ContinuousBernoulli(logits=torch.tensor(-1.0, dtype=torch.float64))
    kl = torch.distributions.kl_divergence(p, q.expand((10,)))
    torch.testing.assert_close(kl, expected(p.log_prob(x) - q.log_prob(x)), rtol=0, atol=1e-6)


def test_continuous_bernoulli_cdf_inverts_its_samples():
    from pyro_vae.likelihoods.continuous_bernoulli import ContinuousBernoulli

    p = ContinuousBernoulli(logits=torch.tensor([-50.0, -1.0, -5e-4, 0.0, 5e-4, 0.2, 30.0], dtype=torch.float64))
    u = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)[:, None]
    torch.testing.assert_close(p.cdf(p.icdf(u)), u.expand(50, 7), rtol=0, atol=1e-7)


# Bad input -----------------------------------------------------------------------------------------------------------


def likelihood_of(name):
    return {
        "bernoulli": pv.BernoulliLikelihood(nn.Linear(D, E)),
        "continuous": pv.ContinuousBernoulliLikelihood(nn.Linear(D, E)),
        "gaussian": pv.GaussianLikelihood(nn.Linear(D, E)),
    }[name]


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("bernoulli", 0.37, r"x: expected values in \{0, 1\} for BernoulliLikelihood, got 0.37. Binarize it"),
        ("bernoulli", math.nan, r"x: expected values in \{0, 1\} for BernoulliLikelihood, got nan"),
        ("continuous", 1.5, r"x: expected values in \[0, 1\] for ContinuousBernoulliLikelihood, got 1.5. Rescale"),
        ("continuous", math.nan, r"got nan"),
        ("gaussian", math.inf, r"x: expected finite values for GaussianLikelihood, got inf"),
        ("gaussian", math.nan, r"got nan"),
    ],
)
def test_data_outside_the_support_are_refused_and_have_density_zero(name, bad, message):
    import pyro

    x = torch.ones(4, E)
    x[2, 1] = bad
    with pytest.raises(ValueError, match=message):
        likelihood_of(name)(torch.zeros(4, D)).log_prob(x)
    with pyro.validation_enabled(False):
        log_prob = likelihood_of(name)(torch.zeros(4, D)).log_prob(x)
    assert log_prob[2] == -math.inf
    assert log_prob[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("name", ["bernoulli", "continuous", "gaussian"])
def test_wrong_shape_or_dtype_is_refused_by_a_likelihood(name):
    p = likelihood_of(name)(torch.zeros(4, D))
    with pytest.raises(ValueError, match=r"x: expected event shape \(3,\), that of p\(x\|z\), got .* \(4, 1\)"):
        p.log_prob(torch.ones(4, 1))  # would broadcast
    with pytest.raises(TypeError, match=r"x: expected floating-point values .* got torch.int64"):
        p.log_prob(torch.ones(4, E, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"x: expected torch.float32, .* got torch.float16"):
        p.log_prob(torch.ones(4, E, dtype=torch.float16))
    with pytest.raises(TypeError, match=r"x: expected a torch.Tensor, got list"):
        p.log_prob([1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: pv.GaussianLikelihood(nn.Linear(2, 3), scale="shard"),
            r"scale: expected a number, \"shared\".* 'shard'",
        ),
        (lambda: pv.GaussianLikelihood(nn.Linear(2, 3), scale=0.0), r"scale: expected a finite number of at least"),
        (lambda: pv.GaussianLikelihood(nn.Linear(2, 3), scale=math.nan), r"scale: expected a finite number"),
        (lambda: pv.GaussianLikelihood(nn.Linear(2, 3), min_scale=0.0), r"min_scale: expected a finite number above 0"),
        (lambda: pv.GaussianLikelihood(nn.Linear(2, 3), min_scale=math.inf), r"min_scale: expected a finite number"),
        (lambda: pv.GaussianLikelihood(nn.Linear(2, 3), scale=None), r"scale: expected a finite number .* got None"),
        (lambda: pv.GaussianLikelihood(nn.Linear(2, 3), scale=True), r"scale: expected a finite number .* got True"),
        (lambda: pv.AnyLeadingDims(nn.Linear(2, 3), 3)(torch.zeros(2)), r"input: expected at least 3 dimensions"),
        (
            lambda: pv.GaussianLikelihood(nn.Identity(), scale="per-dimension"),
            r"event_shape: expected the shape of one",
        ),
        (
            lambda: pv.DiagonalNormalPosterior(nn.Linear(3, 4), min_scale=-1),
            r"min_scale: expected a finite number above 0",
        ),
        (lambda: pv.StandardNormalPrior(0), r"latent_dim: expected an integer of at least 1, got 0"),
        (lambda: pv.MLP(3, 0), r"out_features: expected an integer of at least 1, got 0"),
        (lambda: pv.MLP(3, 2, hidden_dims=(4, -1)), r"hidden_dims: expected an integer of at least 1, got -1"),
        (lambda: pv.MLP(3, 2)(torch.zeros(5, 4)), r"input: expected shape \(\*, 3\) .* got \(5, 4\). Flatten"),
        (
            lambda: pv.DiagonalNormalPosterior(nn.Linear(3, 5))(torch.zeros(2, 3)),
            r"network: expected an even output width",
        ),
        (
            lambda: pv.GaussianLikelihood(nn.Linear(2, 3), scale="predicted")(torch.zeros(2)),
            r"network: expected output of shape \(\*, 2 \* E\) \(2 numbers for each element of a datum\), got \(3,\)",
        ),
        (
            lambda: pv.GaussianLikelihood(nn.Linear(2, 3), scale="shared", event_shape=(4,))(torch.zeros(2)),
            r"network: expected output of shape \(\*, 4\), event_shape being \(4,\), got \(3,\)",
        ),
        (
            lambda: pv.BernoulliLikelihood(nn.Linear(2, 3)).initialize_output_bias(torch.ones(5, 4)),
            r"network: expected an output bias of shape \(4,\).* got \(3,\)",
        ),
        (
            lambda: pv.BernoulliLikelihood(nn.Sequential(nn.Linear(2, 3))).initialize_output_bias(torch.ones(5, 3)),
            r"network: expected a last layer with a bias",
        ),
        (
            lambda: pv.BernoulliLikelihood(nn.Linear(2, 3)).initialize_output_bias(torch.ones(0, 3)),
            r"x: expected at least one datum",
        ),
        (
            lambda: pv.BernoulliLikelihood(nn.Linear(2, 3)).initialize_output_bias(torch.full((2, 3), math.nan)),
            r"x: expected finite values",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [lambda: pv.MLP(3, 2), lambda: pv.DiagonalNormalPosterior(pv.MLP(3, 2))])
def test_integers_and_half_are_refused_by_networks(make):
    with pytest.raises(TypeError, match=r"expected floating-point values"):
        make()(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"(input|x): expected torch.float32, .* got torch.float16"):
        make()(torch.zeros(2, 3).half())


@pytest.mark.parametrize("part", [pv.DiagonalNormalPosterior(nn.Linear(3, 4)), pv.BernoulliLikelihood(nn.Linear(3, 4))])
def test_other_floats_are_refused_whatever_the_network(part):
    with pytest.raises(
        TypeError, match=r"(x|z): expected torch.float32, the dtype of the parameters, got torch.float64"
    ):
        part(torch.zeros(2, 3, dtype=torch.float64))


def test_mlp_takes_its_activation():
    assert isinstance(pv.MLP(3, 2, hidden_dims=(4,), activation=nn.Tanh).layers[1], nn.Tanh)
    assert pv.MLP(3, 2, hidden_dims=(4,), activation=lambda: nn.LeakyReLU(0.3)).layers[1].negative_slope == 0.3
    for wrong in (nn.SiLU(), torch.relu, "relu"):
        with pytest.raises(TypeError, match=r"activation: expected a function that returns a module, such as nn.SiLU"):
            pv.MLP(3, 2, activation=wrong)
    with pytest.raises(TypeError, match=r"hidden_dims: expected a sequence of integers, got 5. Write \(5,\)"):
        pv.MLP(3, 2, hidden_dims=5)


def test_images_pass_through_convolutions():
    likelihood = pv.BernoulliLikelihood(
        nn.Sequential(nn.Linear(2, 32), nn.Unflatten(-1, (2, 4, 4)), nn.Conv2d(2, 1, 1)), event_shape=(1, 4, 4)
    )
    p = likelihood(torch.zeros(5, 2))
    assert (p.batch_shape, p.event_shape) == ((5,), (1, 4, 4))
    assert p.log_prob(torch.ones(5, 1, 4, 4)).shape == (5,)
    with pytest.raises(ValueError, match=r"expected event shape \(1, 4, 4\)"):
        p.log_prob(torch.ones(5, 4, 4))
    gaussian = pv.GaussianLikelihood(
        nn.Sequential(nn.Linear(2, 32), nn.Unflatten(-1, (2, 4, 4))), scale="predicted", event_shape=(1, 4, 4)
    )
    assert gaussian(torch.zeros(5, 2)).event_shape == (1, 4, 4)


@pytest.mark.parametrize("name", [*POSTERIORS, *LIKELIHOODS])
def test_densities_stay_in_float32_under_autocast(name):
    with torch.autocast("cpu", torch.bfloat16):
        out, value = run(ALL[name]())
        assert out.log_prob(value).dtype == torch.float32


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_event_shape_is_the_shape_of_one_datum(name):
    """One keyword with one meaning in every likelihood; None is a vector as long as the network's output."""
    make = {
        "BernoulliLikelihood": pv.BernoulliLikelihood,
        "ContinuousBernoulliLikelihood": pv.ContinuousBernoulliLikelihood,
    }
    scale = {"fixed": 0.5}.get(name.split()[-1], name.split()[-1])
    make = make.get(name, lambda *args, **kwargs: pv.GaussianLikelihood(*args, scale=scale, **kwargs))
    channels = 2 * 1 if scale == "predicted" else 1
    network = nn.Sequential(nn.Linear(2, channels * 6), nn.Unflatten(-1, (channels, 2, 3)))
    for shape in ((1, 2, 3), [np.int64(1), np.int32(2), 3], torch.Size((1, 2, 3))):
        likelihood = make(network, event_shape=shape)
        assert likelihood.event_shape == (1, 2, 3)
        p = likelihood(torch.zeros(5, 2))
        assert (p.batch_shape, p.event_shape) == ((5,), (1, 2, 3))
        assert p.log_prob(torch.ones(5, 1, 2, 3)).shape == (5,)
        with pytest.raises(ValueError, match=r"x: expected event shape \(1, 2, 3\)"):
            p.log_prob(torch.ones(5, 2, 3))
    for wrong in (3, (), (0,), (2.0, 3), "123", np.int64(3), (True,), torch.ones(2)):
        with pytest.raises(ValueError, match=r"event_shape: expected a sequence of at least one integer"):
            make(network, event_shape=wrong)
    for other in ((1, 3, 2), (6,), (2, 1, 2, 3)):
        with pytest.raises(ValueError, match=r"network: expected output of shape .* event_shape being"):
            make(network, event_shape=other)(torch.zeros(5, 2))
    with pytest.raises(TypeError, match=r"event_dim"):
        make(network, event_dim=3)


def test_numpy_numbers_are_numbers():
    likelihood = pv.GaussianLikelihood(nn.Linear(2, 3), scale=np.float32(0.5), min_scale=np.float64(1e-3))
    assert (type(likelihood.scale), type(likelihood.min_scale)) == (float, float)
    assert type(pv.ContinuousBernoulliLikelihood(nn.Linear(2, 3), max_logit=np.int64(20)).max_logit) is float
    assert pv.StandardNormalPrior(np.int64(2))().event_shape == (2,)
    assert type(pv.latent_scale(np.float32(0.5)).scale) is float
