"""Data with missing elements: left out of the likelihood, and told to the posterior; against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv

D, E = 2, 4
NAN = math.nan
X = torch.tensor([[0.0, 1.0, NAN, 1.0], [NAN, NAN, NAN, NAN], [1.0, 0.0, 0.0, 1.0], [1.0, NAN, 0.0, NAN]])
MASK = ~X.isnan()


def make(missing: bool = True, likelihood: Any = pv.BernoulliLikelihood, width: int = E) -> pv.VAE:
    return pv.VAE(
        pv.StandardNormalPrior(D),
        likelihood(pv.MLP(D, width, hidden_dims=(5,))),
        pv.DiagonalNormalPosterior(pv.MLP(2 * E, 2 * D, hidden_dims=(5,))),
        missing=missing,
    )


def loss_and_gradients(vae: pv.VAE, x: Tensor, **kwargs: Any) -> tuple[float, list[Tensor]]:
    pyro.set_rng_seed(5)
    vae.zero_grad()
    loss = Trace_ELBO().loss_and_grads(vae.model, vae.guide, x, **kwargs)
    return loss, [p.grad.clone() for p in vae.parameters() if p.grad is not None]


LIKELIHOODS: dict[str, tuple[Any, int, Tensor]] = {
    "Bernoulli": (pv.BernoulliLikelihood, E, torch.tensor([0.0, 1.0])),
    "Beta": (pv.BetaLikelihood, E, torch.tensor([0.2, 0.9])),
    "Categorical": (lambda n: pv.CategoricalLikelihood(n, 3), 3 * E, torch.tensor([0.0, 2.0])),
    "ContinuousBernoulli": (pv.ContinuousBernoulliLikelihood, E, torch.tensor([0.0, 0.7])),
    "DiscretizedLogistic": (lambda n: pv.DiscretizedLogisticLikelihood(n), 2 * E, torch.tensor([0.0, 1.0])),
    "Gaussian": (pv.GaussianLikelihood, E, torch.tensor([-1.0, 3.0])),
    "Laplace": (pv.LaplaceLikelihood, E, torch.tensor([-1.0, 3.0])),
    "NegativeBinomial": (pv.NegativeBinomialLikelihood, E, torch.tensor([0.0, 4.0])),
    "Poisson": (pv.PoissonLikelihood, E, torch.tensor([0.0, 4.0])),
    "StudentT": (pv.StudentTLikelihood, E, torch.tensor([-1.0, 3.0])),
    "ZeroInflatedNegativeBinomial": (pv.ZeroInflatedNegativeBinomialLikelihood, 2 * E, torch.tensor([0.0, 4.0])),
}


def test_every_likelihood_is_here() -> None:
    names = {name.removesuffix("Likelihood") for name in pv.likelihoods.__all__ if name.endswith("Likelihood")}
    assert names - {"Mixed"} == set(LIKELIHOODS)  # test_mixed.py has missing elements too


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_what_is_missing_is_left_out(name: str) -> None:
    """The density is the product over the observed elements; neither it nor its gradients depend on the others."""
    torch.manual_seed(0)
    make_likelihood, width, values = LIKELIHOODS[name]
    likelihood = make_likelihood(pv.MLP(D, width, hidden_dims=(5,)))
    x = values[torch.randint(2, (3, E))]
    mask = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])
    z = torch.randn(7, 3, D)
    p = likelihood(z)
    elements = p.base_dist.log_prob(x.expand(7, 3, E))
    expected = (elements * mask).sum(-1)
    found = {}
    for filler in (NAN, math.inf, -7.3, x):
        observed = pv.observed_elements(likelihood(z), mask)
        log_p = observed.log_prob(torch.where(mask, x, torch.as_tensor(filler)))
        torch.testing.assert_close(log_p, expected)
        likelihood.zero_grad()
        log_p.sum().backward()
        found[filler] = [p.grad.clone() for p in likelihood.parameters()]
        assert all(g.isfinite().all() for g in found[filler])
        assert all(torch.equal(a, b) for a, b in zip(found[filler], found[NAN], strict=True))
    assert torch.equal(observed.log_prob(x)[:, 1], torch.zeros(7))
    assert observed.sample().shape == (7, 3, E)
    assert observed.expand((2, 7, 3)).log_prob(x).shape == (2, 7, 3)
    with pytest.raises(ValueError, match="x: expected"):
        observed.log_prob(torch.full((3, E), NAN))


def test_nan_and_mask_say_the_same() -> None:
    torch.manual_seed(0)
    vae = make()
    loss, gradients = loss_and_gradients(vae, X)
    assert math.isfinite(loss)
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)
    vae.missing = False
    for filler in (NAN, 0.0, 1.0, 1e30, -math.inf):
        again, others = loss_and_gradients(vae, X.where(MASK, filler), mask=MASK)
        assert again == loss
        assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    # A mask beside NaN: missing is what either says.
    vae.missing = True
    also = MASK.clone()
    also[0, 0] = False
    both = loss_and_gradients(vae, X, mask=also)[0]
    assert both == loss_and_gradients(vae, X.where(also, NAN))[0] != loss


def test_nan_is_an_error_where_it_was_not_asked_for() -> None:
    vae = make(missing=False)
    vae.posterior = pv.DiagonalNormalPosterior(pv.MLP(E, 2 * D, hidden_dims=(5,)))
    with pytest.raises(ValueError, match=r"x: expected finite values, got nan.*missing=True"):
        vae.guide(X)
    with pytest.raises(ValueError, match=r"x: expected values in \{0, 1\}"):
        poutine.trace(poutine.condition(vae.model, {"z": torch.zeros(4, D)})).get_trace(X).compute_log_prob()
    # An infinite value is no missing one.
    with pytest.raises(ValueError, match="got inf"):
        poutine.trace(make().model).get_trace(X.nan_to_num(math.inf)).compute_log_prob()


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (MASK.float(), r"mask: expected a boolean tensor of the shape of x, \(4, 4\).*torch.float32"),
        (MASK[:, :2], r"mask: expected a boolean tensor of the shape of x, \(4, 4\).*\(4, 2\)"),
        (MASK[0], r"mask: expected a boolean tensor of the shape of x"),
        ([True], r"mask: expected a torch.Tensor, got list"),
    ],
)
def test_a_wrong_mask_is_refused(mask: Any, match: str) -> None:
    vae = make(missing=False)
    for call in (vae.model, vae.guide, vae.encode, vae.reconstruct):
        with pytest.raises((ValueError, TypeError), match=match):
            call(X.nan_to_num(), mask=mask)
    with pytest.raises((ValueError, TypeError), match=match):
        vae.likelihood.initialize_output_bias(X, mask=mask)
    with pytest.raises(ValueError, match="mask: expected data x to go with it"):
        vae.model(mask=MASK)


def test_a_distribution_without_independent_elements_is_refused() -> None:
    p = dist.MultivariateNormal(torch.zeros(4, E), torch.eye(E))
    with pytest.raises(TypeError, match=r"expected a distribution over independent elements.*MultivariateNormal"):
        pv.observed_elements(p, MASK)
    with pytest.raises(ValueError, match=r"mask: expected a boolean tensor of event shape \(4,\)"):
        pv.observed_elements(dist.Normal(torch.zeros(4, E), 1.0).to_event(1), MASK[:, :3])
    of_numbers = pv.observed_elements(dist.Normal(torch.zeros(3), 1.0), torch.tensor([True, False, True]))
    assert of_numbers.log_prob(torch.tensor([1.0, NAN, 2.0]))[1] == 0


def test_the_network_gets_the_mask() -> None:
    seen: list[Tensor] = []

    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros(*x.shape[:-1], 2 * D)

    posterior = pv.DiagonalNormalPosterior(Network())
    posterior(X, mask=MASK)
    assert torch.equal(seen[-1], torch.cat([X.nan_to_num(0.0), MASK.float()], -1))
    conditional = pv.Conditional(posterior)
    y = torch.randn(4, 3)
    conditional(X, y, mask=MASK)
    assert torch.equal(seen[-1], torch.cat([X.nan_to_num(0.0), MASK.float(), y], -1))
    images = torch.randn(2, 1, 6, 6)
    mask = torch.rand(2, 1, 6, 6) < 0.5
    encoder = pv.ConvEncoder((2, 6, 6), 2 * D, channels=(4,))
    q = pv.DiagonalNormalPosterior(encoder)(images.where(mask, NAN), mask=mask)
    joined = torch.cat([images.where(mask, 0.0), mask.float()], 1)
    assert torch.equal(q.mean, encoder(joined)[:, :D])


def test_a_posterior_of_ones_own_is_told(recwarn: Any) -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor, *, mask: Tensor) -> Any:
            return dist.Normal(mask.float()[..., :D], 1.0).to_event(1)

    vae = pv.VAE(pv.StandardNormalPrior(D), pv.BernoulliLikelihood(pv.MLP(D, E)), Own(), missing=True)
    assert torch.equal(vae.encode(X).mean, MASK.float()[:, :D])


def test_images_and_what_is_given() -> None:
    """Missing pixels, labels, a conditional VAE."""
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.StandardNormalPrior(D),
        pv.Conditional(pv.BernoulliLikelihood(pv.MLP(D + 3, E))),
        pv.Conditional(pv.DiagonalNormalPosterior(pv.MLP(2 * E + 3, 2 * D))),
        missing=True,
    )
    y = torch.eye(3)[[0, 1, 2, 0]]
    vae.likelihood.initialize_output_bias(X[:3].repeat(2, 1), mask=MASK[:3].repeat(2, 1))
    assert math.isfinite(Trace_ELBO().loss(vae.model, vae.guide, X, y))
    assert vae.reconstruct(X, y).isfinite().all()
    assert pv.bounds(vae.model, vae.guide, X, y, num_particles=5).iwae.isfinite().all()


def test_a_vamp_prior_is_told() -> None:
    torch.manual_seed(0)
    posterior = pv.DiagonalNormalPosterior(pv.MLP(2 * E, 2 * D, hidden_dims=(5,)))
    prior = pv.VampPrior(posterior, X, mask=MASK)
    vae = pv.VAE(prior, pv.BernoulliLikelihood(pv.MLP(D, E)), posterior, missing=True)
    loss, gradients = loss_and_gradients(vae, X)
    assert math.isfinite(loss)
    assert all(g.isfinite().all() for g in gradients)
    means = posterior(X, mask=MASK).mean
    torch.testing.assert_close(prior().component_distribution.mean, means)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_initialization_takes_what_is_observed(name: str) -> None:
    make_likelihood, width, values = LIKELIHOODS[name]
    torch.manual_seed(0)
    x = values[torch.randint(2, (40, E))]
    mask = torch.rand(40, E) < 0.6
    ours, full = (make_likelihood(pv.MLP(D, width, hidden_dims=(5,))) for _ in range(2))
    ours.initialize_output_bias(x.where(mask, NAN), mask=mask)
    full.initialize_output_bias(x)
    for i in range(E):  # as if the element had those data alone
        alone = make_likelihood(pv.MLP(D, width, hidden_dims=(5,)))
        alone.initialize_output_bias(x[mask[:, i], i : i + 1].expand(-1, E))
        biases = [likelihood.network.output.bias.reshape(-1, E)[:, i] for likelihood in (ours, alone)]
        torch.testing.assert_close(*biases, atol=1e-5, rtol=1e-4)
    assert not torch.equal(ours.network.output.bias, full.network.output.bias)
    with pytest.raises(ValueError, match=r"x: expected finite values, got NaN.*mask=~x.isnan"):
        ours.initialize_output_bias(x.where(mask, NAN))
    with pytest.raises(ValueError, match="mask: expected at least one observed element"):
        ours.initialize_output_bias(x, mask=torch.zeros_like(mask))
    never = mask.clone()
    never[:, 1] = False  # an element that is never observed starts at the mean of all
    ours.initialize_output_bias(x.where(never, NAN), mask=never)
    assert ours.network.output.bias.isfinite().all()


def test_bounds_equal_those_of_the_observed_elements() -> None:
    """Of a likelihood over two elements, the bound of data that lack the others: the same draws, the same numbers."""
    torch.manual_seed(0)
    vae = make()
    x = torch.randint(0, 2, (6, E)).float()
    x[:, 2:] = NAN
    part = pv.VAE(
        vae.prior,
        pv.BernoulliLikelihood(nn.Linear(D, 2)),
        lambda x: vae.encode(nn.functional.pad(x, (0, 2), value=NAN)),
        name="part",
    )
    network = vae.likelihood.network
    part.likelihood.network = nn.Sequential(network, _First(2))
    found = []
    for story, data in ((vae, x), (part, x[:, :2])):
        pyro.set_rng_seed(1)
        found.append(pv.bounds(story.model, story.guide, data, num_particles=50))
    torch.testing.assert_close(found[0].iwae, found[1].iwae)
    torch.testing.assert_close(found[0].elbo, found[1].elbo)
    pyro.set_rng_seed(1)
    cut = pv.bounds(vae.model, vae.guide, x.nan_to_num(), mask=~x.isnan(), num_particles=50)
    torch.testing.assert_close(cut.iwae, found[0].iwae)


class _First(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.n]


@pytest.mark.parametrize("how", ["NaN", "mask"])
def test_compiled_steps_are_those_of_pyro(how: str) -> None:
    ends = []
    for compiled in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = make(missing=how == "NaN")
        optim = pv.Adam({"lr": 0.01})
        options = {"compile": "graph", "check_steps": 1, "on_refusal": "raise"}
        svi = (
            pv.CompiledSVI(vae.model, vae.guide, optim, Trace_ELBO(), **options)
            if compiled
            else SVI(vae.model, vae.guide, optim, Trace_ELBO())
        )
        for step in range(6):
            x = torch.bernoulli(torch.full((8, E), 0.4))
            mask = torch.rand(8, E) < 0.3 + 0.1 * step
            if how == "NaN":
                svi.step(x.where(mask, NAN))
            else:
                svi.step(x, mask=mask)
        ends.append([p.detach().clone() for p in vae.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("how", ["NaN", "mask"])
def test_fit_takes_it(how: str) -> None:
    histories = []
    torch.manual_seed(0)
    x, mask = torch.bernoulli(torch.full((40, E), 0.3)), torch.rand(40, E) < 0.6
    pyro.set_rng_seed(0)
    vae = make(missing=how == "NaN")
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 0.01}), Trace_ELBO(), compile="graph")
    if how == "NaN":
        loader = DataLoader(TensorDataset(x.where(mask, NAN)), 10)
        history = pv.fit(svi, loader, epochs=3, validation=loader, progress=False)
    else:
        loader = DataLoader(TensorDataset(x, mask), 10)
        history = pv.fit(svi, loader, epochs=3, validation=loader, keywords=("mask",), progress=False)
    histories.append(history)
    assert all(math.isfinite(v) for v in history["train_elbo"] + history["validation_elbo"])
    expected = (
        -Trace_ELBO(num_particles=400).loss(
            vae.model, vae.guide, x.where(mask, NAN) if how == "NaN" else x, **({} if how == "NaN" else {"mask": mask})
        )
        / 40
    )
    assert history["validation_elbo"][-1] == pytest.approx(expected, abs=0.3)


def test_an_infinite_loss_is_not_blamed_on_nan() -> None:
    vae = make(likelihood=pv.GaussianLikelihood)
    with torch.no_grad():
        vae.likelihood.network.output.bias.fill_(1e30)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    with pytest.raises(FloatingPointError, match="not finite"):
        pv.fit(svi, [X], epochs=1, progress=False)


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ("mask", "keywords: expected different names"),
        (("mask", "mask"), "keywords: expected different names"),
        ((3,), "keywords: expected different names"),
        (("beta",), "neither schedules= nor size= gives, got beta"),
        (("mask", "other"), r"expected batches that are tuples of at least 3 items.*got 2"),
    ],
)
def test_wrong_keywords_are_refused(keywords: Any, match: str) -> None:
    vae = make(missing=False)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    with pytest.raises(ValueError, match=match):
        pv.fit(
            svi,
            [(X.nan_to_num(), MASK)],
            epochs=1,
            keywords=keywords,
            schedules={"beta": pv.linear_warmup(1)},
            progress=False,
        )


# -- discrete latent variables and enumeration -------------------------------------------------------------------------

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 1.0], [-1.5, 1.0, 0.0, -2.0], [0.3, 0.2, -0.7, 1.1]])
PI = torch.tensor([0.5, 0.3, 0.2])


def mixture(x: Tensor, mask: Tensor | None = None, y: Tensor | None = None, shown: Tensor | None = None) -> None:
    """y ~ Categorical(pi), x ~ Bernoulli(logits_y), some of x and some of y observed."""
    mask = ~x.isnan() if mask is None else mask
    with pyro.plate("data", len(x)):
        if y is None:
            y = pyro.sample("y", dist.Categorical(PI), infer={"enumerate": "parallel"})
        else:
            y = pyro.sample("y", dist.Categorical(PI), obs=y, obs_mask=shown, infer={"enumerate": "parallel"})
        p = dist.Bernoulli(logits=LOGITS[y]).to_event(1)
        pyro.sample("x", pv.observed_elements(p, mask), obs=x)


def nothing(*args: Any, **kwargs: Any) -> None:
    pass


def exact(x: Tensor, y: Tensor | None = None, shown: Tensor | None = None) -> Tensor:
    """log p(what is observed of x and y) by enumeration."""
    joint = PI.log() + (dist.Bernoulli(logits=LOGITS).log_prob(x.nan_to_num()[:, None]) * ~x.isnan()[:, None]).sum(-1)
    if y is None or shown is None:
        return joint.logsumexp(-1)
    return torch.where(shown, joint.gather(-1, y[:, None])[:, 0], joint.logsumexp(-1))


def test_a_partly_observed_datum_agrees_with_enumeration() -> None:
    log_w = pv.log_weights(mixture, nothing, X)
    torch.testing.assert_close(log_w[0], exact(X))
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(mixture, nothing, X)
    assert loss == pytest.approx(-exact(X).sum().item(), rel=1e-5)
    torch.testing.assert_close(pv.bounds(mixture, nothing, X, num_particles=1).iwae, exact(X))


def test_a_partly_observed_discrete_site_agrees_with_enumeration() -> None:
    """Classes of some data are shown (pyro issue 3255): each weight is that of what is observed of its datum."""
    y, shown = torch.tensor([0, 2, 1, 1]), torch.tensor([True, False, True, False])
    enumerated = config_enumerate(mixture, "parallel")  # Pyro hands infer= of a site on to neither of its two parts
    log_w = pv.log_weights(enumerated, nothing, X, y=y, shown=shown)
    torch.testing.assert_close(log_w[0], exact(X, y, shown))
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated, nothing, X, y=y, shown=shown)
    assert loss == pytest.approx(-exact(X, y, shown).sum().item(), rel=1e-5)
