"""Hierarchies of latent variables, against linear-Gaussian ones whose log p(x) and posterior are known."""

from __future__ import annotations

import copy
import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv
from tests import helpers
from tests.helpers.stories import trains_alike

KINDS = pytest.mark.parametrize("top_down", [False, True], ids=["bottom-up", "top-down"])


def normal(inputs: int, outputs: int) -> pv.DiagonalNormalPosterior:
    return pv.DiagonalNormalPosterior(pv.MLP(inputs, 2 * outputs, hidden_dims=(7,)))


def small(top_down: bool = False, *, missing: bool = False) -> pv.HierarchicalVAE:
    """Three layers of 2, 3 and 1 dimensions over 6 binary elements."""
    networks = [pv.MLP(6 * (1 + missing), 5, (7,)), pv.MLP(5, 5, (7,)), pv.MLP(5, 4, (7,))] if top_down else None
    widths = (5, 5, 4) if top_down else (6 * (1 + missing), 2, 3)
    return pv.HierarchicalVAE(
        pv.StandardNormalPrior(1),
        [normal(3, 2), normal(1, 3)],
        pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=(8,))),
        [normal(width, latent_dim) for width, latent_dim in zip(widths, (2, 3, 1), strict=True)],
        networks,
        missing=missing,
    )


# The truth -----------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_at_the_exact_posterior_every_weight_is_p_x(layers, top_down):
    vae, x, log_px = helpers.linear_hierarchy(layers, top_down=top_down)
    log_w = pv.log_weights(vae.model, vae.guide, x, num_particles=4)
    torch.testing.assert_close(log_w, log_px.expand(4, -1), rtol=0, atol=1e-9)
    elbo, iwae = pv.bounds(vae.model, vae.guide, x, num_particles=3)
    torch.testing.assert_close(elbo, log_px, rtol=0, atol=1e-9)
    torch.testing.assert_close(iwae, log_px, rtol=0, atol=1e-9)
    # The planted fault: a layer of the guide that is a little off.
    with torch.no_grad():
        vae.posteriors[-1].network.bias[0] += 0.3
    assert (pv.log_weights(vae.model, vae.guide, x) - log_px).abs().max() > 1e-2


@KINDS
def test_the_gradient_of_the_objectives_without_score_is_zero_at_the_exact_posterior(top_down):
    """For every draw, of every layer."""
    vae, x, _ = helpers.linear_hierarchy(top_down=top_down)
    for parameter in (*vae.conditionals.parameters(), *vae.likelihood.parameters()):
        parameter.requires_grad_(False)
    for objective, largest in ((pv.TraceSTL_ELBO(), 1e-8), (pv.TraceIWAE_ELBO(4, gradient="dreg"), 1e-8)):
        vae.zero_grad()
        objective.loss_and_grads(vae.model, vae.guide, x)
        gradients = [
            p.grad.abs().max()
            for p in (*vae.posteriors.parameters(), *(vae.bottom_up or vae).parameters())
            if p.grad is not None
        ]
        assert gradients
        assert max(gradients) < largest
    vae.zero_grad()
    Trace_ELBO().loss_and_grads(vae.model, vae.guide, x)
    assert max(p.grad.abs().max() for p in vae.posteriors.parameters()) > 1.0


def test_a_ladder_of_one_layer_is_a_vae(make_vae, binary_data):
    vae = make_vae()
    parts = (vae.prior, [], vae.likelihood, [vae.posterior])
    for one in (pv.HierarchicalVAE(*parts), pv.HierarchicalVAE(*parts, [nn.Identity()])):
        losses = []
        for module in (vae, one):
            pyro.set_rng_seed(0)
            losses.append(Trace_ELBO().loss(module.model, module.guide, binary_data, beta=0.5, size=100))
        assert losses[0] == losses[1]
        assert torch.equal(one.reconstruct(binary_data), vae.reconstruct(binary_data))


@pytest.mark.slow
def test_training_reaches_the_exact_bound():
    """Two layers, bottom-up, from a random guide: the ELBO meets log p(x)."""
    solved = helpers.linear_hierarchy(2)
    vae = copy.deepcopy(solved.vae)
    for parameter in (*vae.conditionals.parameters(), *vae.likelihood.parameters()):
        parameter.requires_grad_(False)
    with torch.no_grad():
        for parameter in vae.posteriors.parameters():
            parameter.normal_(std=0.1)
    for lr, steps in ((5e-2, 300), (5e-3, 100)):
        svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": lr}), pv.TraceSTL_ELBO(), compile="graph")
        for _ in range(steps):
            svi.step(solved.x)
    gap = solved.log_px - pv.elbo(pv.log_weights(vae.model, vae.guide, solved.x, num_particles=100))
    assert 0 <= gap.mean().item() < 0.01


def test_closed_form_kl_is_that_of_the_ladder_and_refused_bottom_up():
    vae, x, log_px = helpers.linear_hierarchy(top_down=True)
    pyro.set_rng_seed(0)
    loss = TraceMeanField_ELBO(num_particles=400, vectorize_particles=True, max_plate_nesting=1)
    elbo = -loss.loss(vae.model, vae.guide, x) / len(x)
    assert elbo == pytest.approx(log_px.mean().item(), abs=0.05)
    other = helpers.linear_hierarchy()
    with pytest.warns(UserWarning, match="Failed to verify mean field restriction"):
        TraceMeanField_ELBO().loss(other.vae.model, other.vae.guide, other.x)


def test_samples_and_reconstructions_have_the_exact_means():
    for top_down in (False, True):
        vae, x, _ = helpers.linear_hierarchy(top_down=top_down)
        draws = vae.sample(20_000)
        draws_by_pyro = Predictive(vae.model, num_samples=20_000, parallel=True)()["x"][:, 0]
        error = (draws.mean(0) - draws_by_pyro.mean(0)) / draws.std(0) * math.sqrt(10_000)
        assert error.abs().max() < 4.5
        torch.testing.assert_close(draws.T.cov(), draws_by_pyro.T.cov(), rtol=0.1, atol=0.2)
        assert vae.sample(5, mean=True).shape == (5, 4)
        # All is linear: E[x'|x] at the means of the layers is the average over draws.
        averaged = vae.reconstruct(x[:5], num_particles=4000)
        torch.testing.assert_close(averaged, vae.reconstruct(x[:5]), rtol=0, atol=0.1)


# Pyro and the engine -------------------------------------------------------------------------------------------------


@KINDS
def test_the_sites_of_the_story(binary_data, top_down):
    vae = small(top_down)
    guide_trace = poutine.trace(vae.guide).get_trace(binary_data)
    model_trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(binary_data)
    assert [n for n in model_trace.stochastic_nodes if n != "data"] == ["z_3", "z_2", "z_1"]
    order = ["z_3", "z_2", "z_1"] if top_down else ["z_1", "z_2", "z_3"]
    assert [n for n in guide_trace.stochastic_nodes if n != "data"] == order
    assert [tuple(guide_trace.nodes[f"z_{i}"]["value"].shape) for i in (1, 2, 3)] == [(64, 2), (64, 3), (64, 1)]
    expected = {f"hierarchical_vae$$${name}" for name, _ in vae.named_parameters()}
    assert set(guide_trace.param_nodes) == set(model_trace.param_nodes) == expected
    posterior = Predictive(vae.model, guide=vae.guide, num_samples=7, return_sites=["z_3"])(binary_data)
    assert posterior["z_3"].shape == (7, 64, 1)
    assert pv.log_weights(vae.model, vae.guide, binary_data, num_particles=3).shape == (3, 64)


@KINDS
@pytest.mark.parametrize(
    "objective",
    [Trace_ELBO, pv.TraceSTL_ELBO, lambda: pv.TraceIWAE_ELBO(3, gradient="dreg")],
    ids=["elbo", "stl", "dreg"],
)
def test_captured_steps_are_pyros_with_a_schedule_of_beta(binary_data, top_down, objective):
    def make():
        vae = small(top_down)
        return vae.model, vae.guide

    captures = trains_alike(
        make, objective, binary_data, keywords=lambda step: {"beta": torch.tensor((step + 1) / 8), "size": 100}
    )
    assert captures == 1


@KINDS
def test_fit_and_resume(tmp_path, binary_data, top_down):
    def run(directory, epochs, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        vae = small(top_down)
        svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), pv.TraceSTL_ELBO())
        history = pv.fit(
            svi,
            binary_data.split(16),
            epochs=epochs,
            validation=[binary_data],
            progress=False,
            schedules={"beta": pv.linear_warmup(2)},
            callbacks=[pv.Checkpoint(directory)],
            **options,
        )
        return vae, history

    whole, history = run(tmp_path / "whole", 4)
    assert history["validation_elbo"][-1] > history["validation_elbo"][0]
    run(tmp_path / "other", 2)
    vae, again = run(tmp_path / "other", 4, resume=tmp_path / "other")
    assert again["train_elbo"] == history["train_elbo"]
    for name, value in vae.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


@KINDS
def test_missing_elements_are_left_out(binary_data, top_down):
    vae = small(top_down, missing=True)
    x, mask = binary_data.clone(), torch.rand(binary_data.shape) < 0.7
    x[~mask] = math.nan
    pyro.set_rng_seed(0)
    log_w = pv.log_weights(vae.model, vae.guide, x, num_particles=3)
    pyro.set_rng_seed(0)
    assert torch.equal(log_w, pv.log_weights(vae.model, vae.guide, binary_data, mask=mask, num_particles=3))
    assert vae.reconstruct(x).isfinite().all()
    assert pv.impute(vae.model, vae.guide, x, num_particles=10).mean.isfinite().all()
    with pytest.raises(ValueError, match=r"x: expected finite values, got nan. Remove what is missing, or build"):
        small(top_down).guide(x)


def test_what_is_given_reaches_the_distributions(binary_data):
    y = nn.functional.one_hot(torch.arange(64) % 3, 3).float()
    vae = pv.HierarchicalVAE(
        normal(3, 2),
        [pv.Conditional(normal(2 + 3, 2))],
        pv.Conditional(pv.BernoulliLikelihood(pv.MLP(2 + 3, 6, hidden_dims=(8,)))),
        [pv.Conditional(normal(6 + 3, 2)), pv.Conditional(normal(2 + 3, 2))],
    )
    assert pv.log_weights(vae.model, vae.guide, binary_data, y, num_particles=3).shape == (3, 64)
    assert vae.sample(64, y).shape == vae.reconstruct(binary_data, y).shape == (64, 6)


def test_a_prior_is_fitted_to_the_draws_of_its_layer(binary_data):
    vae = small()
    vae.prior = pv.fit_prior(vae, binary_data[:40], binary_data[40:], prior=pv.MixturePrior(1, 3), epochs=2)
    assert vae.sample(3).shape == (3, 6)


def test_a_state_dict_makes_another_instance_equal(binary_data):
    first, second = small(True), small(True)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.reconstruct(binary_data), second.reconstruct(binary_data))
    copied = copy.deepcopy(first)
    assert torch.equal(first.reconstruct(binary_data), copied.reconstruct(binary_data))


# Bad input -----------------------------------------------------------------------------------------------------------


def test_parts_that_do_not_go_together_are_refused(binary_data):
    vae = small()
    parts = vae.prior, list(vae.conditionals), vae.likelihood, list(vae.posteriors)
    with pytest.raises(ValueError, match=r"posteriors: expected one for each .* got 2 posteriors, 2 conditionals\."):
        pv.HierarchicalVAE(*parts[:3], parts[3][:2])
    with pytest.raises(ValueError, match=r"got 3 posteriors, 2 conditionals and 1 networks in bottom_up"):
        pv.HierarchicalVAE(*parts, [nn.Identity()])
    with pytest.raises(TypeError, match=r"conditionals\[1\]: expected a torch.nn.Module, got None"):
        pv.HierarchicalVAE(parts[0], [parts[1][0], None], *parts[2:])
    with pytest.raises(TypeError, match=r"likelihood: expected a module"):
        pv.HierarchicalVAE(*parts[:2], None, parts[3])
    wide = pv.HierarchicalVAE(*parts[:3], [*parts[3][:2], normal(3, 4)])
    with pytest.raises(ValueError, match=r"posteriors\[2\]: expected draws of event shape \(1,\), that of prior, got"):
        Trace_ELBO().loss(wide.model, wide.guide, binary_data)
    with pytest.raises(ValueError, match=r"got shape \(0, 6\)"):
        vae.guide(binary_data[:0])
    with pytest.raises(ValueError, match=r"num_particles: expected an integer of at least 1, got 0"):
        vae.reconstruct(binary_data, num_particles=0)


def test_a_ladder_of_other_distributions_is_refused(binary_data):
    vae = small(True)
    vae.posteriors[0] = pv.MultivariateNormalPosterior(nn.Linear(5, 5))
    with pytest.raises(ValueError, match=r"posteriors\[0\]: expected a normal distribution with diagonal covariance"):
        vae.guide(binary_data)
    vae.posteriors[0] = normal(5, 3)
    with pytest.raises(
        ValueError, match=r"posteriors\[0\]: expected event shape \(2,\), that of conditionals\[0\], got"
    ):
        vae.guide(binary_data)
