"""Model M2 against its formulas, written out by hand, and against a linear-Gaussian model that is solved."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

import pyro_vae as pv
from tests import helpers
from tests.helpers.stories import trains_alike

B, C, D = 8, 3, 2
LABELS = {
    "none": None,
    "unknown": torch.full((B,), -1),
    "mixed": torch.tensor([0, -1, 2, -1, 1, 1, -1, 0]),
    "known": torch.tensor([0, 1, 2, 2, 1, 1, 0, 0]),
}


def small(**options: Any) -> pv.SemiSupervisedVAE:
    missing = options.get("missing", False)
    width = 6 * (1 + missing)
    return pv.SemiSupervisedVAE(
        pv.StandardNormalPrior(D),
        pv.Conditional(pv.BernoulliLikelihood(pv.MLP(D + C, 6, hidden_dims=(8,)))),
        pv.Conditional(pv.DiagonalNormalPosterior(pv.MLP(width + C, 2 * D, hidden_dims=(8,)))),
        pv.MLP(width, C, hidden_dims=(8,)),
        num_classes=C,
        **options,
    )


def objective() -> TraceEnum_ELBO:
    return TraceEnum_ELBO(max_plate_nesting=1)


def data() -> Tensor:
    return helpers.binary_data(B)


def by_hand(vae: pv.SemiSupervisedVAE, x: Tensor, y: Tensor | None, beta: float, alpha: float, scale: float) -> Tensor:
    """Minus the bound of Kingma et al. (2014), equations 6 to 9, class by class, from the same draws of z."""
    known = torch.zeros(len(x), dtype=torch.bool) if y is None else y >= 0
    labels = torch.zeros(len(x), dtype=torch.long) if y is None else y.clamp(min=0)
    qs = [
        vae.posterior(x, torch.eye(C)[torch.where(known, labels, torch.tensor(value))]).base_dist for value in range(C)
    ]
    eps = torch.randn(C, len(x), D)
    bounds = []
    for value, q in enumerate(qs):
        used = torch.where(known, labels, torch.tensor(value))
        z = q.loc + q.scale * eps[value]
        log_p_x = -nn.functional.binary_cross_entropy_with_logits(
            vae.likelihood.part.network(torch.cat([z, torch.eye(C)[used]], 1)), x, reduction="none"
        ).sum(1)
        log_p_z = -(z.square() / 2 + math.log(2 * math.pi) / 2).sum(1)
        log_q_z = -(eps[value].square() / 2 + q.scale.log() + math.log(2 * math.pi) / 2).sum(1)
        bounds.append(log_p_x + beta * (vae.class_logits[used] + log_p_z - log_q_z))
    of_class = torch.stack(bounds, 1)
    log_q = vae.classifier(x).log_softmax(1)
    unlabelled = (log_q.exp() * (of_class - beta * log_q)).sum(1)
    labelled = of_class.mean(1) + alpha * log_q.gather(1, labels[:, None])[:, 0]
    return -scale * torch.where(known, labelled, unlabelled).sum()


# The truth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("beta", "alpha", "size"), [(1.0, 0.0, None), (0.5, 3.0, 20)])
def test_loss_and_gradients_are_the_formulas(labels, beta, alpha, size):
    vae, x, y = small(class_probs=[0.5, 0.2, 0.3]), data(), LABELS[labels]
    pyro.set_rng_seed(1)
    loss = objective().loss_and_grads(vae.model, vae.guide, x, y, beta=beta, alpha=alpha, size=size)
    found = {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}
    vae.zero_grad()
    pyro.set_rng_seed(1)
    expected = by_hand(vae, x, y, beta, alpha, 1.0 if size is None else size / B)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in vae.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=2e-5)
    # With labels alone, and without alpha, the classifier does not learn.
    learns = found["classifier.layers.0.weight"].abs().max() > 1e-4
    assert learns == (labels != "known" or alpha > 0)


def test_labels_of_other_data_are_noticed():
    """The planted fault."""
    vae, x, y = small(), data(), LABELS["mixed"]
    pyro.set_rng_seed(1)
    loss = objective().loss(vae.model, vae.guide, x, y.roll(1))
    pyro.set_rng_seed(1)
    assert abs(loss - by_hand(vae, x, y, 1.0, 0.0, 1.0).item()) > 1e-2


def test_the_solved_model_gives_log_p_x_and_log_p_x_y():
    vae, x, y, log_joint = helpers.linear_classes()
    of_label = log_joint.gather(1, y[:, None])[:, 0]
    known = torch.arange(len(x)) % 3 > 0
    mixed = torch.where(known, of_label, log_joint.logsumexp(1))
    for labels, exact in ((None, log_joint.logsumexp(1)), (y, of_label), (y.where(known, torch.tensor(-1)), mixed)):
        assert -objective().loss(vae.model, vae.guide, x, labels) == pytest.approx(exact.sum().item(), rel=1e-9)
        log_w = pv.log_weights(vae.model, vae.guide, x, labels, num_particles=4)
        torch.testing.assert_close(log_w, exact.expand(4, -1), rtol=0, atol=1e-9)
    elbo, iwae = pv.bounds(vae.model, vae.guide, x, y, num_particles=3)
    torch.testing.assert_close(elbo, of_label)
    torch.testing.assert_close(iwae, of_label)
    torch.testing.assert_close(vae.classify(x), log_joint.softmax(1))


def test_particles_of_the_objective_agree(binary_data):
    vae, y = small(), torch.arange(64) % 4 - 1
    losses = []
    for options in ({"num_particles": 100}, {"num_particles": 100, "vectorize_particles": True}):
        losses.append(TraceEnum_ELBO(max_plate_nesting=1, **options).loss(vae.model, vae.guide, binary_data, y))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_drawn_class_has_the_same_bound_in_the_mean():
    """Trace_ELBO draws the classes that are summed out; the weights of bounds do so too."""
    vae, x, y = small(), data(), LABELS["mixed"]
    many = TraceEnum_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    exact = -many.loss(vae.model, vae.guide, x, y)
    log_w = pv.log_weights(vae.model, vae.guide, x, y, num_particles=5000).sum(1)
    assert abs(log_w.mean().item() - exact) < 4.5 * 2 * log_w.std().item() / 5000**0.5


@pytest.mark.slow
def test_few_labels_and_many_data_without_are_enough():
    """Two bars, one label each: the classifier finds the classes, and without the data that have no label it errs."""
    x, truth = bars()
    y = torch.full_like(truth, -1)
    for value in (0, 1):
        y[(truth == value).nonzero()[0]] = value
    accuracies = []
    for given in (y, y[y >= 0]):
        pyro.set_rng_seed(0)
        vae = pv.SemiSupervisedVAE(
            pv.StandardNormalPrior(1),
            pv.Conditional(pv.BernoulliLikelihood(pv.MLP(1 + 2, 16, hidden_dims=(8,)))),
            pv.Conditional(pv.DiagonalNormalPosterior(pv.MLP(16 + 2, 2, hidden_dims=(8,)))),
            pv.MLP(16, 2, hidden_dims=()),
            num_classes=2,
        )
        svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 2e-2}), objective(), compile="graph")
        for _ in range(120):
            svi.step(x if len(given) == len(x) else x[y >= 0], given, alpha=20.0)
        accuracies.append((vae.classify(x).argmax(1) == truth).float().mean().item())
    assert accuracies[0] > 0.95
    assert accuracies[1] < 0.9


def bars() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    truth = torch.randint(2, (400,), generator=generator)
    pattern = torch.tensor([[1.0] * 8 + [0.0] * 8, [0.0] * 8 + [1.0] * 8])[truth]
    flips = torch.rand(pattern.shape, generator=generator) < 0.25
    return torch.where(flips, 1 - pattern, pattern), truth


# Pyro and the engine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["none", "mixed"])
def test_captured_steps_are_pyros(labels):
    def make() -> tuple[Any, Any]:
        vae = small()
        return vae.model, vae.guide

    def keywords(step: int) -> dict[str, Any]:
        return {"beta": torch.tensor((step + 1) / 8), "alpha": torch.tensor(2.0 * step), "size": 20}

    assert trains_alike(make, objective, (data(), LABELS[labels]), keywords=keywords) == 1


def test_one_graph_takes_any_labels():
    vae, x = small(), data()
    svi = pv.CompiledSVI(
        vae.model,
        vae.guide,
        pv.Adam({"lr": 1e-2}),
        objective(),
        compile="graph",
        check_steps=1,
        on_refusal="raise",
    )
    for labels in ("mixed", "unknown", "known", "mixed", "known"):
        svi.step(x, LABELS[labels], alpha=1.0)
    assert svi.captures == 1


def test_a_label_that_is_none_stops_a_captured_step():
    vae, x, y = small(), data(), LABELS["mixed"]
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), objective(), compile="graph", check_steps=0)
    for _ in range(3):
        svi.step(x, y, alpha=1.0)
    before = copy.deepcopy(vae.state_dict())
    for wrong in (C, -2):
        with pytest.warns(UserWarning, match=r"not finite .*the step was not applied"):
            assert math.isnan(svi.step(x, y.index_fill(0, torch.tensor([1]), wrong), alpha=1.0))
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert svi.captures == 1


def test_fit_and_resume(tmp_path, binary_data):
    y = torch.arange(64) % 4 - 1

    def run(directory, epochs, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        vae = small()
        svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), objective())
        history = pv.fit(
            svi,
            pv.data.Batches(binary_data, y, batch_size=32, shuffle=True),
            epochs=epochs,
            validation=[(binary_data, y)],
            progress=False,
            schedules={"beta": pv.linear_warmup(2), "alpha": lambda t: 5.0 * t},
            callbacks=[pv.Checkpoint(directory)],
            **options,
        )
        return vae, history

    whole, history = run(tmp_path / "whole", 4)
    assert history["validation_elbo"][-1] > history["validation_elbo"][0]
    losses = objective().loss(whole.model, whole.guide, binary_data, y)
    assert history["validation_elbo"][-1] == pytest.approx(-losses / 64, abs=0.5)  # without the classification term
    run(tmp_path / "other", 2)
    vae, again = run(tmp_path / "other", 4, resume=tmp_path / "other")
    assert again["train_elbo"] == history["train_elbo"]
    for name, value in vae.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_predictive_knows_the_labels():
    vae, x, y = small(), data(), LABELS["mixed"]
    known = y >= 0
    posterior = Predictive(vae.model, guide=vae.guide, num_samples=50, return_sites=["y", "z", "x"])(x, y)
    assert posterior["z"].shape == (50, B, D)
    assert torch.equal(posterior["y"][:, known], y[known].expand(50, -1))
    assert posterior["y"][:, ~known].unique().tolist() == [0, 1, 2]
    assert torch.equal(posterior["x"][3], x)
    assert Predictive(vae.model, guide=vae.guide, num_samples=5)(x)["y"].shape == (5, B)
    prior = Predictive(vae.model, num_samples=50, parallel=True)(None, y)
    assert prior["x"].shape == (50, B, 6)
    assert torch.equal(prior["y"][:, known], y[known].expand(50, -1))
    assert Predictive(vae.model, num_samples=5)(size=4)["y"].shape == (5, 4)


def test_the_sites_of_the_story():
    vae, x = small(), data()
    trace = poutine.trace(vae.guide).get_trace(x)
    assert [name for name in trace.stochastic_nodes if name != "data"] == ["y", "z"]
    trace = poutine.trace(vae.model).get_trace(x, LABELS["mixed"], size=20)
    assert "y_observed" in trace.observation_nodes
    assert trace.nodes["x"]["scale"] == 20 / B
    assert {name for name, _ in vae.named_parameters()} == {name.split("$$$")[1] for name in trace.param_nodes}


def test_samples_have_the_moments_of_their_class():
    vae, _, _, _ = helpers.linear_classes()
    means = vae.likelihood.part.network
    expected = means.bias + means.weight[:, D:].T
    for value in range(C):
        x = vae.sample(20_000, value)
        assert ((x.mean(0) - expected[value]).abs() < 4.5 * x.std(0) / 20_000**0.5).all()
    x = vae.sample(20_000)
    mixed = vae.class_logits.exp() @ expected
    assert ((x.mean(0) - mixed).abs() < 4.5 * x.std(0) / 20_000**0.5).all()
    assert vae.sample(3, torch.tensor([1, -1, 1]), mean=True).shape == (3, 6)


def test_reconstructions_average_over_the_class():
    vae, x, y = small(), data(), LABELS["mixed"]
    found = vae.reconstruct(x, y)
    q = vae.classify(x)
    for row in range(B):
        means = []
        for value in range(C):
            one = torch.eye(C)[value][None]
            means.append(vae.decode(vae.encode(x[row : row + 1], one).mean, one).mean[0])
        weights = torch.eye(C)[y[row]] if y[row] >= 0 else q[row]
        torch.testing.assert_close(found[row], (weights[:, None] * torch.stack(means)).sum(0))
    assert vae.reconstruct(x, num_particles=3).shape == x.shape


def test_a_prior_may_use_the_class():
    """p(z|y): a Gaussian mixture VAE."""
    base = small()
    vae = pv.SemiSupervisedVAE(
        pv.DiagonalNormalPosterior(nn.Linear(C, 2 * D)), base.likelihood, base.posterior, base.classifier, num_classes=C
    )
    for y in (None, LABELS["mixed"]):
        svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), objective())
        before = copy.deepcopy(vae.state_dict())
        svi.step(data(), y)
        changed = {name for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {name for name, _ in vae.named_parameters()}
    assert vae.sample(4).shape == (4, 6)


def test_what_is_given_follows_the_class(binary_data):
    u = torch.randn(64, 2)
    vae = pv.SemiSupervisedVAE(
        pv.StandardNormalPrior(D),
        pv.Conditional(pv.BernoulliLikelihood(pv.MLP(D + C + 2, 6, hidden_dims=(8,)))),
        pv.Conditional(pv.DiagonalNormalPosterior(pv.MLP(6 + C, 2 * D, hidden_dims=(8,))), given=(0,)),
        pv.MLP(6, C, hidden_dims=(8,)),
        num_classes=C,
    )
    y = torch.arange(64) % 4 - 1
    assert math.isfinite(objective().loss(vae.model, vae.guide, binary_data, y, u))
    assert vae.sample(64, y, u).shape == vae.reconstruct(binary_data, y, u).shape == (64, 6)


def test_missing_elements_are_left_out(binary_data):
    vae = small(missing=True)
    y, mask = torch.arange(64) % 4 - 1, torch.rand(binary_data.shape) < 0.7
    x = binary_data.masked_fill(~mask, math.nan)
    losses = []
    for given, named in ((x, {}), (binary_data, {"mask": mask})):
        pyro.set_rng_seed(0)
        losses.append(objective().loss_and_grads(vae.model, vae.guide, given, y, alpha=1.0, **named))
    assert losses[0] == losses[1]
    assert all(p.grad.isfinite().all() for p in vae.parameters())
    assert vae.reconstruct(x, y).isfinite().all()
    assert vae.classify(x).isfinite().all()
    assert pv.impute(vae.model, vae.guide, x, y, num_particles=10).mean.isfinite().all()
    with pytest.raises(ValueError, match=r"x: expected finite values, got nan"):
        small().guide(x, y)


# Bad input -----------------------------------------------------------------------------------------------------------


def test_bad_labels_are_refused():
    vae, x = small(), data()
    step = SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), objective()).step
    for wrong in (3, -2):
        with pytest.raises(ValueError, match=rf"y: expected class numbers from 0 to 2, or -1 for unknown, got {wrong}"):
            step(x, LABELS["mixed"].index_fill(0, torch.tensor([1]), wrong))
    with pytest.raises(ValueError, match=r"y: expected class numbers of shape \(B,\), got \(8, 3\). .*argmax"):
        step(x, torch.eye(3).long()[LABELS["known"]])
    for wrong in (torch.zeros(B), torch.zeros(B, dtype=torch.bool)):
        with pytest.raises(TypeError, match=r"y: expected class numbers \(torch.int64\), got torch.* y.long\(\)"):
            step(x, wrong)
    with pytest.raises(TypeError, match=r"y: expected a torch.Tensor, got list"):
        step(x, [0] * B)
    with pytest.raises(ValueError, match=r"y: expected 8 rows as in x, got 7"):
        step(x, LABELS["known"][1:])
    with pytest.raises(ValueError, match=r"y: expected 5 rows as n, got 8"):
        vae.sample(5, LABELS["known"])
    with pytest.raises(ValueError, match=r"y: expected class numbers from 0 to 2, or -1 for unknown, got 7"):
        vae.sample(5, 7)
    with pytest.raises(ValueError, match=r"x: expected a batch .* got shape \(0, 6\)"):
        step(x[:0], LABELS["known"][:0])
    step(x, LABELS["known"].to(torch.int32))


def test_bad_weights_are_refused():
    vae, x, y = small(), data(), LABELS["mixed"]
    for wrong in (-1.0, math.inf, math.nan, "1"):
        with pytest.raises(ValueError, match=r"alpha: expected a finite number of 0 or more, got"):
            vae.model(x, y, alpha=wrong)
    with pytest.raises(ValueError, match=r"alpha: expected a number or a 0-dim tensor, got shape \(2,\)"):
        vae.model(x, y, alpha=torch.ones(2))
    with pytest.raises(ValueError, match=r"log_factor .* of distribution Unit"):
        objective().loss(vae.model, vae.guide, x, y, alpha=torch.tensor(-1.0))


def test_parts_that_do_not_fit_are_refused():
    vae, x = small(), data()
    parts = vae.prior, vae.likelihood, vae.posterior
    with pytest.raises(TypeError, match=r"classifier: expected a network that maps x to logits \(B, C\), got None"):
        pv.SemiSupervisedVAE(*parts, None, num_classes=C)
    with pytest.raises(ValueError, match=r"num_classes: expected at most 10,000, since every value .* got 10,001"):
        pv.SemiSupervisedVAE(*parts, vae.classifier, num_classes=10_001)
    with pytest.raises(ValueError, match=r"num_classes: expected an integer of at least 1, got 0"):
        pv.SemiSupervisedVAE(*parts, vae.classifier, num_classes=0)
    for wrong in ([0.5, 0.5], [0.5, 0.5, 0.5], [1.0, 0.0, 0.0], "uniform"):
        with pytest.raises(ValueError, match=r"class_probs: expected 3 probabilities above 0 that sum to 1"):
            pv.SemiSupervisedVAE(*parts, vae.classifier, num_classes=C, class_probs=wrong)
    wide = pv.SemiSupervisedVAE(*parts, nn.Linear(6, 4), num_classes=C)
    with pytest.raises(ValueError, match=r"classifier: expected logits of shape \(8, 3\), .* got \(8, 4\)"):
        wide.guide(x)
    plain = pv.SemiSupervisedVAE(vae.prior, vae.likelihood.part, vae.posterior, vae.classifier, num_classes=C)
    with pytest.raises(ValueError, match=r"input: expected shape \(\*, 5\) for MLP"):
        Trace_ELBO().loss(plain.model, pyro.poutine.block(lambda x: None), x)


def test_objectives_that_need_gradients_of_every_draw_refuse():
    vae, x = small(), data()
    with pytest.raises(ValueError, match=r"site 'y': Categorical has no reparameterised sampler"):
        pv.TraceIWAE_ELBO(3).loss_and_grads(vae.model, vae.guide, x)


def test_a_posterior_may_leave_the_class_out():
    base = small()
    posterior = pv.DiagonalNormalPosterior(nn.Linear(6, 2 * D))
    vae = pv.SemiSupervisedVAE(base.prior, base.likelihood, posterior, base.classifier, num_classes=C)
    assert math.isfinite(objective().loss(vae.model, vae.guide, data(), LABELS["mixed"]))
    assert vae.reconstruct(data()).shape == (B, 6)
    assert isinstance(vae.encode(data(), torch.eye(C)[LABELS["known"]]), dist.Independent)


def test_the_number_of_data_agrees_with_the_labels():
    vae = small()
    assert vae.model(None, torch.tensor([0, 1]), size=2).shape == (2, 6)
    with pytest.raises(ValueError, match="y: expected 5 rows as in size, got 2"):
        vae.model(None, torch.tensor([0, 1]), size=5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_may_be_of_any_integer_type(dtype):
    vae, labels = small(), LABELS["known"]
    losses = []
    for y in (labels, labels.to(dtype)):
        pyro.set_rng_seed(0)
        losses.append(objective().loss(vae.model, vae.guide, data(), y))
    assert losses[0] == losses[1]
    with pyro.validation_enabled(False):
        assert objective().loss(vae.model, vae.guide, data(), labels.to(dtype)) == pytest.approx(losses[0], rel=0.5)
    with pytest.raises(ValueError, match="from 0 to 2, or -1 for unknown, got 9"):
        vae.model(data(), torch.full((B,), 9, dtype=dtype))
    if dtype.is_signed:
        vae.model(data(), LABELS["mixed"].to(dtype))


def test_the_classification_term_is_no_part_of_a_bound():
    """It is of the loss, and log_weights and bounds leave it out, as they do beta."""
    vae, y = small(), LABELS["mixed"]
    found = []
    for alpha in (0.0, 50.0):
        pyro.set_rng_seed(0)
        found.append(pv.log_weights(vae.model, vae.guide, data(), y, alpha=alpha, num_particles=3))
    assert torch.equal(*found)
    losses = []
    for alpha in (0.0, 50.0):
        pyro.set_rng_seed(0)
        losses.append(objective().loss(vae.model, vae.guide, data(), y, alpha=alpha))
    assert losses[1] > losses[0] + 50
