"""Bayes' rule from bounds, against Bayes' rule from normal densities."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyro_vae as pv
from tests import helpers

C = 3
PROBS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def solved() -> tuple[list[pv.VAE], Tensor, Tensor, Tensor]:
    """A linear-Gaussian VAE a class with its exact posterior, data, their classes, and log p(x, y)."""
    generator = torch.Generator().manual_seed(3)
    stories, densities = [], []
    for _ in range(C):
        vae = helpers.linear_gaussian(dtype=torch.float64).vae
        decoder, encoder = vae.likelihood.network, vae.posterior.network
        shift = 0.6 * torch.randn(6, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            encoder.bias -= encoder.weight @ shift
            decoder.bias += shift
            scale = vae.likelihood(torch.zeros(1, 2).double()).base_dist.scale.flatten()[0]
            covariance = decoder.weight @ decoder.weight.T + scale**2 * torch.eye(6).double()
        densities.append(torch.distributions.MultivariateNormal(decoder.bias.detach(), covariance))
        stories.append(vae)
    y = torch.multinomial(PROBS, 200, replacement=True, generator=generator)
    x = torch.stack([stories[int(c)].sample(1)[0] for c in y])
    log_joint = torch.stack([p.log_prob(x) for p in densities], 1) + PROBS.log()
    return stories, x, y, log_joint


def test_it_is_bayes_rule():
    stories, x, y, log_joint = solved()
    found = pv.GenerativeClassifier(stories, class_probs=PROBS)(x, num_particles=3)
    torch.testing.assert_close(found.log_joint, log_joint, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.log_evidence, log_joint.logsumexp(1), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.probs, log_joint.softmax(1), rtol=0, atol=1e-8)
    assert torch.equal(found.y, log_joint.argmax(1))
    assert 0.6 < (found.y == y).double().mean() < 1.0
    # The planted fault: the classes of other stories.
    other = pv.GenerativeClassifier(stories[::-1], class_probs=PROBS)(x, num_particles=3)
    assert (other.probs - log_joint.softmax(1)).abs().max() > 0.1
    equal = pv.GenerativeClassifier(stories)(x, num_particles=3)
    torch.testing.assert_close(equal.probs, (log_joint - PROBS.log()).softmax(1), rtol=0, atol=1e-6)


def test_what_is_of_none_of_the_classes_has_a_low_log_evidence():
    stories, x, _, _ = solved()
    classify = pv.GenerativeClassifier(stories, class_probs=PROBS)
    threshold = classify(x, num_particles=3).log_evidence.quantile(0.01)
    pyro.set_rng_seed(7)
    of_the_classes = torch.cat([story.sample(100) for story in stories])
    others = of_the_classes + 4.0 * torch.randn(6).double().sign() * torch.tensor([1.0, -1.0]).repeat(3).double()
    assert (classify(of_the_classes, num_particles=3).log_evidence < threshold).double().mean() < 0.06
    assert (classify(others, num_particles=3).log_evidence < threshold).double().mean() > 0.9


def test_one_model_of_all_classes_is_a_pair_for_each():
    """p(x|y) of a conditional VAE, and p(x, y) / p(y) of a semi-supervised one."""
    solved, x, _, log_joint = helpers.linear_classes()

    def pair(function):
        return [lambda x, y=y: function(x, torch.full((len(x),), y)) for y in range(3)]

    pairs = list(zip(pair(solved.model), pair(solved.guide), strict=True))
    found = pv.GenerativeClassifier(pairs)(x, num_particles=3)
    torch.testing.assert_close(found.probs, log_joint.softmax(1))
    torch.testing.assert_close(found.probs, solved.classify(x))


def test_a_model_trained_on_each_class_tells_them_apart():
    generator = torch.Generator().manual_seed(2)
    y = torch.randint(2, (400,), generator=generator)
    patterns = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 1]]).float()
    x = torch.where(torch.rand(400, 6, generator=generator) < 0.1, 1 - patterns[y], patterns[y])
    stories = [helpers.small_vae(name=f"vae_{c}") for c in range(2)]
    for c, vae in enumerate(stories):
        svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 2e-2}), Trace_ELBO(), compile="graph")
        for _ in range(150):
            svi.step(x[:300][y[:300] == c])
    found = pv.GenerativeClassifier(stories)(x[300:], num_particles=100)
    assert (found.y == y[300:]).double().mean() > 0.9


def test_what_is_given_and_options_reach_the_models(binary_data):
    u = torch.randn(64, 2)
    stories = [
        pv.VAE(
            pv.StandardNormalPrior(2),
            pv.Conditional(pv.BernoulliLikelihood(nn.Linear(4, 6))),
            pv.DiagonalNormalPosterior(nn.Linear(6, 4)),
        )
        for _ in range(2)
    ]
    found = pv.GenerativeClassifier(stories)(binary_data, u, num_particles=5, max_bytes=10_000, compile=False)
    assert found.probs.shape == (64, 2)
    torch.testing.assert_close(found.probs.sum(1), torch.ones(64))
    mask = torch.rand(binary_data.shape) < 0.5
    plain = [helpers.small_vae() for _ in range(2)]
    for vae in plain:
        vae.posterior = pv.DiagonalNormalPosterior(nn.Linear(12, 4))
    assert pv.GenerativeClassifier(plain)(binary_data, mask=mask, num_particles=5).y.shape == (64,)


def test_bad_input_is_refused(binary_data):
    vae = helpers.small_vae()
    with pytest.raises(ValueError, match=r"stories: expected at least two, one for each class, got 1"):
        pv.GenerativeClassifier([vae])
    for wrong in (None, vae.model, (vae.model,), (vae.model, None)):
        with pytest.raises(TypeError, match=r"stories\[1\]: expected an object with model and guide, or a pair"):
            pv.GenerativeClassifier([vae, wrong])
    with pytest.raises(
        ValueError, match=r"class_probs: expected 2 probabilities above 0 that sum to 1, .* got \[0.5\]"
    ):
        pv.GenerativeClassifier([vae, vae], class_probs=[0.5])
    classify = pv.GenerativeClassifier([vae, (vae.model, vae.guide)])
    with pytest.raises(ValueError, match=r"num_particles: expected an integer of at least 1, got 0"):
        classify(binary_data, num_particles=0)
    with pytest.raises(TypeError, match=r"args: expected the data as positional arguments"):
        classify()


def test_a_datum_that_is_impossible_in_every_class_tells_nothing_of_its_class():
    class Uniform(nn.Module):
        def __init__(self, high: float) -> None:
            super().__init__()
            self.high = high

        def forward(self, z: Tensor) -> pyro.distributions.Independent:
            low = torch.zeros(*z.shape[:-1], 1)
            return pyro.distributions.Uniform(low, low + self.high, validate_args=False).to_event(1)

    stories = [
        pv.VAE(pv.StandardNormalPrior(2), Uniform(high), pv.DiagonalNormalPosterior(nn.Linear(1, 4)))
        for high in (1.0, 2.0)
    ]
    x = torch.tensor([[0.5], [1.5], [3.0]])
    found = pv.GenerativeClassifier(stories, class_probs=[0.25, 0.75])(x, num_particles=200)
    assert found.log_evidence[2] == -torch.inf
    torch.testing.assert_close(found.probs[1:], torch.tensor([[0.0, 1.0], [0.25, 0.75]]))
    assert found.y[1:].tolist() == [1, 1]
