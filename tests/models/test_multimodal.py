"""Several modalities, any of them missing, against linear-Gaussian models whose posterior is known for every subset."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.posteriors.product_of_experts import product_of_experts
from tests.helpers.stories import trains_alike

D = 2
SIZES = {"a": 3, "b": 4, "c": 2}
SUBSETS = [
    subset for size in range(len(SIZES) + 1) for subset in itertools.combinations(SIZES, size)
]  # 8, the empty one first
NAN = math.nan
FULL = pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])


def solved(full: bool, missing: bool = False, rows: int = 5) -> tuple[pv.MultimodalVAE, dict[str, Tensor], Any]:
    """A linear-Gaussian story with exact experts, data of ``rows`` for each subset, and W, m, s by modality."""
    generator = torch.Generator().manual_seed(3)
    likelihoods, experts, truth = {}, {}, {}
    for i, (name, size) in enumerate(SIZES.items()):
        weight = torch.randn(size, D, generator=generator, dtype=torch.float64)
        if not full:  # orthogonal columns, so that W^T W is diagonal
            weight = torch.linalg.qr(weight)[0] * torch.tensor([1.5, 0.7], dtype=torch.float64)
        mean, scale = torch.randn(size, generator=generator, dtype=torch.float64), 0.5 + 0.25 * i
        likelihoods[name] = pv.GaussianLikelihood(nn.Linear(D, size), scale=scale)
        precision = weight.T @ weight / scale**2
        to_mean = torch.linalg.inv(precision) @ weight.T / scale**2
        width = 2 * D + (D * (D - 1) // 2 if full else 0)
        expert = (pv.MultivariateNormalPosterior if full else pv.DiagonalNormalPosterior)(nn.Linear(size, width))
        factor = torch.linalg.cholesky(torch.linalg.inv(precision))
        with torch.no_grad():
            likelihoods[name].double().network.weight.copy_(weight)
            likelihoods[name].network.bias.copy_(mean)
            expert.double().network.weight.zero_()[:D].copy_(to_mean)
            expert.network.bias[:D] = -to_mean @ mean
            expert.network.bias[D : 2 * D] = 2 * (factor.diagonal() - expert.min_scale).log()
            if full:
                expert.network.bias[2 * D] = factor[1, 0]
        experts[name] = expert
        truth[name] = weight, mean, scale
    vae = pv.MultimodalVAE(pv.StandardNormalPrior(D), likelihoods, experts, missing=missing).double()
    pyro.set_rng_seed(1)
    return vae, {name: value.detach() for name, value in vae.sample(rows * len(SUBSETS)).items()}, truth


def patterns(rows: int = 5) -> dict[str, Tensor]:
    """Masks of a batch in which ``rows`` data have each subset."""
    return {name: torch.tensor([name in subset for subset in SUBSETS for _ in range(rows)]) for name in SIZES}


def exact(x: dict[str, Tensor], truth: Any, rows: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """log p of what is observed, and mean and covariance of z given it, from the joint normal distribution."""
    log_px, means, covariances = [], [], []
    for i, subset in enumerate(SUBSETS):
        here = slice(i * rows, (i + 1) * rows)
        if not subset:
            log_px.append(torch.zeros(rows).double())
            means.append(torch.zeros(rows, D).double())
            covariances.append(torch.eye(D).double().expand(rows, D, D))
            continue
        weight = torch.cat([truth[name][0] for name in subset])
        mean = torch.cat([truth[name][1] for name in subset])
        noise = torch.cat([torch.full((SIZES[name],), truth[name][2] ** 2).double() for name in subset])
        covariance = weight @ weight.T + torch.diag(noise)
        data = torch.cat([x[name][here] for name in subset], 1)
        log_px.append(torch.distributions.MultivariateNormal(mean, covariance).log_prob(data))
        gain = weight.T @ torch.linalg.inv(covariance)
        means.append((data - mean) @ gain.T)
        covariances.append((torch.eye(D).double() - gain @ weight).expand(rows, D, D))
    return torch.cat(log_px), torch.cat(means), torch.cat(covariances)


def small(missing: bool = False, names: str = "ab") -> pv.MultimodalVAE:
    """Binary vectors of 6 and 4 elements."""
    sizes = {name: size for name, size in zip("abc", (6, 4, 3), strict=True) if name in names}
    return pv.MultimodalVAE(
        pv.StandardNormalPrior(D),
        {name: pv.BernoulliLikelihood(pv.MLP(D, size, hidden_dims=(7,))) for name, size in sizes.items()},
        {name: pv.DiagonalNormalPosterior(pv.MLP(size, 2 * D, hidden_dims=(7,))) for name, size in sizes.items()},
        missing=missing,
    )


def batch(rows: int = 12, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Binary data and masks; the first datum has no modality."""
    generator = torch.Generator().manual_seed(seed)
    x = {name: torch.randint(2, (rows, size), generator=generator).float() for name, size in (("a", 6), ("b", 4))}
    mask = {name: torch.rand(rows, generator=generator) < 0.6 for name in x}
    for rows_with in mask.values():
        rows_with[:1] = False
    return x, mask


def lacking(x: dict[str, Tensor], mask: dict[str, Tensor], filler: float) -> dict[str, Tensor]:
    return {name: value.where(mask[name][:, None], filler) for name, value in x.items()}


# The truth -----------------------------------------------------------------------------------------------------------


@FULL
@pytest.mark.parametrize("how", ["mask", "NaN"])
def test_the_posterior_is_exact_for_every_subset(full: bool, how: str) -> None:
    vae, x, truth = solved(full, missing=how == "NaN")
    log_px, mean, covariance = exact(x, truth)
    gone = lacking(x, patterns(), NAN)
    args, kwargs = (gone,), {"mask": patterns()} if how == "mask" else {}
    q = vae.encode(*args, **kwargs)
    found = q.covariance_matrix if full else torch.diag_embed(q.variance)
    torch.testing.assert_close(q.mean, mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, covariance, rtol=0, atol=1e-9)
    log_w = pv.log_weights(vae.model, vae.guide, *args, num_particles=4, **kwargs)
    torch.testing.assert_close(log_w, log_px.expand(4, -1), rtol=0, atol=1e-8)
    bounds = pv.bounds(vae.model, vae.guide, *args, num_particles=3, **kwargs)
    torch.testing.assert_close(bounds.elbo, log_px, rtol=0, atol=1e-8)
    torch.testing.assert_close(bounds.iwae, log_px, rtol=0, atol=1e-8)
    # The planted fault: an expert that is a little off counts where its modality is observed, and there alone.
    with torch.no_grad():
        vae.experts["b"].network.bias[0] += 0.3
    gap = (pv.log_weights(vae.model, vae.guide, *args, **kwargs)[0] - log_px).abs()
    assert gap[patterns()["b"]].min() > 1e-6
    assert gap[~patterns()["b"]].max() < 1e-8


@pytest.mark.parametrize("subset", SUBSETS[1:], ids="".join)
def test_a_modality_that_all_data_lack_may_be_left_out(subset: tuple[str, ...]) -> None:
    """As None, or without an entry: then it has no site."""
    vae, x, truth = solved(True)
    here = slice(5 * SUBSETS.index(subset), 5 * SUBSETS.index(subset) + 5)
    log_px = exact(x, truth)[0][here]
    for given in (
        {name: x[name][here] for name in subset},
        {name: x[name][here] if name in subset else None for name in SIZES},
    ):
        log_w = pv.log_weights(vae.model, vae.guide, given, num_particles=2)
        torch.testing.assert_close(log_w, log_px.expand(2, -1), rtol=0, atol=1e-8)
        sites = poutine.trace(vae.model).get_trace(given).observation_nodes
        assert sites == [f"x_{name}" for name in subset]


def test_the_prior_counts_once() -> None:
    """With equal experts N(1, 1/2): k of them have precision 1 + 2 k, and not k (1 + 2)."""
    prior = dist.Normal(torch.zeros(D), 1.0).to_event(1)
    expert = dist.Normal(torch.ones(4, D), 0.5**0.5).to_event(1)
    for k in range(1, 4):
        q = product_of_experts(prior, {str(i): expert for i in range(k)})
        torch.testing.assert_close(q.variance, torch.full((4, D), 1 / (1 + 2 * k)))
        torch.testing.assert_close(q.mean, torch.full((4, D), 2 * k / (1 + 2 * k)))
    nothing = product_of_experts(prior, {"a": expert}, {"a": torch.zeros(4, dtype=torch.bool)})
    torch.testing.assert_close(nothing.mean, torch.zeros(4, D))
    torch.testing.assert_close(nothing.variance, torch.ones(4, D))


def test_diagonal_full_and_low_rank_factors_have_one_product() -> None:
    torch.manual_seed(0)
    diagonal = dist.Normal(torch.randn(3, D), torch.rand(3, D) + 0.5).to_event(1)
    low_rank = dist.LowRankMultivariateNormal(torch.randn(3, D), torch.randn(3, D, 1), torch.rand(3, D) + 0.5)
    full = dist.MultivariateNormal(torch.randn(3, D), low_rank.covariance_matrix)
    z = torch.randn(50, 3, D)
    prior = dist.Normal(torch.zeros(D), torch.tensor([1.0, 2.0])).to_event(1)
    for experts in ({"a": diagonal}, {"a": diagonal, "b": full}, {"a": low_rank, "b": diagonal, "c": full}):
        product = prior.log_prob(z) + sum(expert.log_prob(z) for expert in experts.values())
        difference = product_of_experts(prior, experts).log_prob(z) - product
        torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=1e-4, atol=1e-4)


def test_imputed_modalities_have_the_exact_conditional_distribution() -> None:
    """b given a, by ``impute``: E[b|a] = W_b E[z|a] + m_b."""
    vae, x, truth = solved(True, missing=True)
    a, b = x["a"][:6], torch.full((6, SIZES["b"]), NAN).double()
    b[0] = x["b"][0]

    def model(b: Tensor, a: Tensor) -> Any:
        return vae.model({"a": a, "b": b})

    def guide(b: Tensor, a: Tensor) -> Any:
        return vae.guide({"a": a, "b": b})

    imputed = pv.impute(model, guide, b, a, site="x_b", num_particles=4000, num_samples=2000)
    weight, mean, scale = truth["b"]
    q = vae.encode({"a": a, "b": b})
    expected = q.mean @ weight.T + mean
    deviation = (weight @ q.covariance_matrix @ weight.T).diagonal(dim1=1, dim2=2).sqrt()
    assert torch.equal(imputed.mean[0], b[0])
    assert ((imputed.mean - expected)[1:].abs() < 5 * deviation[1:] / 4000**0.5).all()
    assert ((vae.reconstruct({"a": a, "b": b})["b"] - expected).abs() < 1e-9).all()
    variance = deviation.square() + scale**2
    torch.testing.assert_close(imputed.draws.var(0)[1:], variance[1:], rtol=0.25, atol=0.0)


def test_samples_are_draws_of_the_model() -> None:
    vae, _, truth = solved(True)
    x = vae.sample(20_000)
    together = torch.cat([x["a"], x["c"]], 1)
    weight = torch.cat([truth["a"][0], truth["c"][0]])
    noise = torch.tensor([truth["a"][2] ** 2] * 3 + [truth["c"][2] ** 2] * 2).double()
    torch.testing.assert_close(together.T.cov(), weight @ weight.T + torch.diag(noise), rtol=0.05, atol=0.1)
    drawn = Predictive(vae.model, num_samples=7)(size=5)
    assert [drawn[f"x_{name}"].shape for name in SIZES] == [(7, 5, size) for size in SIZES.values()]
    assert {name: value.shape for name, value in vae.sample(3, mean=True).items()} == {
        name: (3, size) for name, size in SIZES.items()
    }


# What is missing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, pv.TraceSTL_ELBO, lambda: pv.TraceIWAE_ELBO(3)])
def test_neither_loss_nor_gradient_depends_on_the_filler(objective: Any) -> None:
    torch.manual_seed(0)
    vae, (x, mask) = small(), batch()

    def run(x: dict[str, Tensor], **kwargs: Any) -> list[Tensor]:
        pyro.set_rng_seed(5)
        vae.zero_grad()
        loss = objective().loss_and_grads(vae.model, vae.guide, x, **kwargs)
        return [torch.tensor(loss), *(p.grad.clone() for p in vae.parameters())]

    expected = run(x, mask=mask)
    assert all(value.isfinite().all() and value.any() for value in expected)
    for filler in (NAN, math.inf, -1e30, 0.5):
        assert all(map(torch.equal, expected, run(lacking(x, mask, filler), mask=mask)))
    vae.missing = True
    assert all(map(torch.equal, expected, run(lacking(x, mask, NAN))))
    assert not torch.equal(expected[0], run(x)[0])  # nothing is missing


def test_a_datum_without_any_modality_has_the_prior() -> None:
    vae, (x, mask) = small(), batch()
    q = vae.encode(x, mask=mask)
    assert torch.equal(q.mean[0], torch.zeros(D))
    assert torch.equal(q.stddev[0], torch.ones(D))
    log_w = pv.log_weights(vae.model, vae.guide, x, mask=mask, num_particles=3)
    torch.testing.assert_close(log_w[:, 0], torch.zeros(3))
    assert vae.reconstruct(x, mask=mask)["a"].shape == (12, 6)
    assert vae.reconstruct(x, mask=mask, num_particles=5)["b"].shape == (12, 4)


def test_random_subsets_are_of_what_is_there_and_of_every_size() -> None:
    torch.manual_seed(0)
    vae = small(missing=True, names="abc")
    rows = 40_000
    x = {"a": torch.zeros(rows, 6), "b": torch.zeros(rows, 4), "c": torch.zeros(rows, 3)}
    x["a"][: rows // 2] = NAN
    mask = vae.random_subsets(x, {"b": torch.arange(rows) % 4 > 0})
    drawn = torch.stack([mask[name] for name in "abc"], 1)
    there = torch.stack([torch.arange(rows) >= rows // 2, torch.arange(rows) % 4 > 0, torch.ones(rows).bool()], 1)
    assert not (drawn & ~there).any()
    for has in itertools.product([False, True], [False, True], [True]):
        chosen = drawn[(there == torch.tensor(has)).all(1)]
        n = sum(has)
        for subset in itertools.product([False, True], repeat=3):
            share = (chosen == torch.tensor(subset)).all(1).double().mean().item()
            possible = all(h or not s for s, h in zip(subset, has, strict=True)) and any(subset)
            expected = 1 / n / math.comb(n, sum(subset)) if possible else 0.0
            assert share == pytest.approx(expected, abs=4.5 * 0.5 / len(chosen) ** 0.5 if possible else 0.0)
    nothing = vae.random_subsets({"a": torch.full((3, 6), NAN)})
    assert not nothing["a"].any()


@pytest.mark.slow
def test_random_subsets_train_the_experts_to_do_alone() -> None:
    """Without them the experts of a and b are trained together alone, and each is overconfident or vague by itself."""
    found = {}
    exactly, x, truth = solved(False, rows=20)
    log_px = exact(x, truth, rows=20)[0]
    single = torch.tensor([len(subset) == 1 for subset in SUBSETS for _ in range(20)])
    for subsets in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = copy.deepcopy(exactly)
        for likelihood in vae.likelihoods.values():
            likelihood.requires_grad_(False)
        with torch.no_grad():
            for parameter in vae.experts.parameters():
                parameter.normal_(std=0.1)
        svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 0.05}), pv.TraceSTL_ELBO(), compile="graph")
        for _ in range(60):
            svi.step(x, mask=vae.random_subsets(x) if subsets else {name: torch.ones(160).bool() for name in x})
        log_w = pv.log_weights(vae.model, vae.guide, x, mask=patterns(20), num_particles=20)
        found[subsets] = (log_px - pv.elbo(log_w))[single].mean().item()
    assert found[True] < 0.1
    assert found[False] > 5 * found[True]


# Pyro and the engine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["mask", "NaN"])
@pytest.mark.parametrize(
    "objective",
    [Trace_ELBO, pytest.param(lambda: pv.TraceIWAE_ELBO(3, gradient="dreg"), marks=pytest.mark.slow)],
    ids=["elbo", "dreg"],
)
def test_one_graph_serves_all_patterns(how: str, objective: Any) -> None:
    """Captured steps are Pyro's to the last bit, whatever is missing, and with a beta that rises."""

    def make() -> tuple[Any, Any]:
        vae = small(missing=how == "NaN")
        return vae.model, vae.guide

    x = batch()[0]
    filled = lacking(x, batch(seed=1)[1], NAN) if how == "NaN" else x

    def keywords(step: int) -> dict[str, Any]:
        named: dict[str, Any] = {"beta": torch.tensor((step + 1) / 8), "size": 100}
        return {**named, "mask": batch(seed=step)[1]} if how == "mask" else named

    assert trains_alike(make, objective, (filled,), keywords=keywords) == 1


@pytest.mark.slow
def test_full_covariances_are_captured() -> None:
    x, mask = solved(True)[1], patterns()

    def make() -> tuple[Any, Any]:
        vae = solved(True)[0]
        return vae.model, vae.guide

    assert trains_alike(make, pv.TraceSTL_ELBO, (x,), keywords=lambda step: {"mask": mask}) == 1


def test_the_sites_of_the_story() -> None:
    vae, (x, mask) = small(), batch()
    trace = poutine.trace(vae.model).get_trace(x, mask=mask, size=100, beta=0.5)
    assert [name for name in trace.stochastic_nodes if name != "data"] == ["z"]
    assert trace.observation_nodes == ["x_a", "x_b"]
    assert trace.nodes["x_a"]["scale"] == 100 / 12
    assert trace.nodes["z"]["scale"] == 0.5 * 100 / 12
    assert {name for name, _ in vae.named_parameters()} == {name.split("$$$")[1] for name in trace.param_nodes}
    posterior = Predictive(vae.model, guide=vae.guide, num_samples=7, return_sites=["z"])(x, mask=mask)
    assert posterior["z"].shape == (7, 12, D)


@pytest.mark.parametrize("subsets", [pytest.param(False, marks=pytest.mark.slow), True])
def test_fit_and_resume(tmp_path, subsets) -> None:
    """From a loader of dictionaries and masks; or on random subsets, which a resumed run draws again."""
    x, mask = batch(40)

    class Records(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, i: int) -> Any:
            return tuple({name: value[i] for name, value in part.items()} for part in (x, mask))

    def run(directory, epochs, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        vae = small()
        vae.initialize_output_bias(x, mask=mask)
        svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), compile="graph")
        history = pv.fit(
            svi,
            DataLoader(Records(), 10),
            epochs=epochs,
            validation=[(x, mask)],
            transform=(lambda batch: (batch[0], vae.random_subsets(*batch))) if subsets else None,
            keywords=("mask",),
            schedules={"beta": pv.linear_warmup(2)},
            callbacks=[pv.Checkpoint(directory)],
            progress=False,
            **options,
        )
        return vae, history, svi.captures

    whole, history, captures = run(tmp_path / "whole", 4)
    assert captures == 2  # of training and of validation
    assert history["validation_elbo"][-1] > history["validation_elbo"][0]
    run(tmp_path / "other", 2)
    vae, again, _ = run(tmp_path / "other", 4, resume=tmp_path / "other")
    assert again["train_elbo"] == history["train_elbo"]
    assert again["validation_elbo"] == history["validation_elbo"]
    for name, value in vae.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_tuples_become_dictionaries_by_a_transform() -> None:
    x, _ = batch(40)
    vae = small()
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), compile="graph")
    loader = DataLoader(TensorDataset(x["a"], x["b"]), 10)
    history = pv.fit(svi, loader, epochs=2, transform=lambda t: dict(zip("ab", t, strict=True)), progress=False)
    assert history["steps"] == [4, 8]
    assert svi.captures == 1


def test_images_and_class_numbers() -> None:
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Linear(D, 16), nn.Unflatten(-1, (1, 4, 4)))
    vae = pv.MultimodalVAE(
        pv.StandardNormalPrior(D),
        {
            "image": pv.BernoulliLikelihood(flat, event_shape=(1, 4, 4)),
            "label": pv.CategoricalLikelihood(nn.Linear(D, 3), num_classes=3),
        },
        {
            "image": pv.DiagonalNormalPosterior(nn.Sequential(nn.Flatten(-3), nn.Linear(16, 2 * D))),
            "label": pv.DiagonalNormalPosterior(nn.Linear(1, 2 * D)),
        },
        missing=True,
    )
    x = {"image": torch.rand(5, 1, 4, 4).round(), "label": torch.tensor([[0.0], [NAN], [2.0], [1.0], [NAN]])}
    x["image"][1:3] = NAN
    log_w = pv.log_weights(vae.model, vae.guide, x, num_particles=3)
    assert torch.equal(log_w[:, 1], torch.zeros(3))
    for name, rows in (("image", slice(4, 5)), ("label", slice(2, 3))):  # what has one modality is as it is alone
        pyro.set_rng_seed(0)
        alone = pv.log_weights(vae.model, vae.guide, {name: x[name][rows]}, num_particles=3)
        pyro.set_rng_seed(0)
        torch.testing.assert_close(
            alone, pv.log_weights(vae.model, vae.guide, {m: v[rows] for m, v in x.items()}, num_particles=3)
        )
    assert vae.reconstruct(x)["image"].shape == vae.sample(5)["image"].shape == (5, 1, 4, 4)


def test_what_is_given_reaches_the_parts() -> None:
    x, mask = batch()
    y = nn.functional.one_hot(torch.arange(12) % 3, 3).float()
    vae = pv.MultimodalVAE(
        pv.DiagonalNormalPosterior(nn.Linear(3, 2 * D)),
        {"a": pv.Conditional(pv.BernoulliLikelihood(nn.Linear(D + 3, 6)))},
        {"a": pv.Conditional(pv.DiagonalNormalPosterior(nn.Linear(6 + 3, 2 * D)))},
    )
    a, rows = {"a": x["a"]}, {"a": mask["a"]}
    vae.initialize_output_bias(a, y, mask=rows)
    assert pv.log_weights(vae.model, vae.guide, a, y, mask=rows, num_particles=3).shape == (3, 12)
    assert torch.equal(vae.encode(a, y, mask=rows).mean[0], vae.prior(y).mean[0])
    assert vae.sample(12, y)["a"].shape == vae.reconstruct(a, y)["a"].shape == (12, 6)
    with pytest.raises(ValueError, match=r"given\[0\]: expected 12 rows as in x, got 11"):
        vae.model(a, y[:11])
    with pytest.raises(ValueError, match=r"given\[0\]: expected 3 rows as n, got 12"):
        vae.sample(3, y)


def test_a_likelihood_starts_at_the_mean_of_the_data_that_have_its_modality() -> None:
    vae, (x, mask) = small(missing=True), batch(40)
    vae.initialize_output_bias(lacking(x, mask, NAN))
    alone = pv.BernoulliLikelihood(nn.Linear(D, 6))
    alone.initialize_output_bias(x["a"][mask["a"]])
    torch.testing.assert_close(vae.likelihoods["a"].network.output.bias, alone.network.bias)


# Bad input -----------------------------------------------------------------------------------------------------------

A, B = torch.zeros(3, 6), torch.zeros(3, 4)
YES = torch.ones(3, dtype=torch.bool)
BAD: list[tuple[Any, Any, str]] = [
    (A, None, r"x: expected a dictionary of modalities, got Tensor. Write \{'a': ..., 'b': ...\}"),
    ({"a": A, "sound": B}, None, r"x: expected modalities among 'a', 'b', got 'sound'. Leave it out"),
    ({}, None, r"x: expected at least one of the modalities 'a', 'b'.*got none"),
    ({"a": None}, None, r"x: expected at least one of the modalities 'a', 'b'"),
    ({"a": A, "b": B[:2]}, None, r"x\['b'\]: expected 3 rows as in x\['a'\], got 2. Give one for each datum"),
    ({"a": A[0]}, None, r"x\['a'\]: expected a batch \(B, \*E\) of at least one datum with 2 dimensions, got"),
    ({"a": A[:0]}, None, r"x\['a'\]: expected a batch .* got shape \(0, 6\)"),
    ({"a": A.long()}, None, r"x\['a'\]: expected floating-point values"),
    ({"a": [0.0]}, None, r"x\['a'\]: expected a torch.Tensor, got list"),
    ({"a": A.fill_(0), "b": B.clone().fill_(NAN)}, None, r"x\['b'\]: expected finite values, got nan.*missing=True"),
    ({"a": A}, {"b": YES}, r"mask: expected modalities among 'a', got 'b'"),
    ({"a": A}, YES, r"mask: expected a dictionary of masks \(B,\), one for a modality, got Tensor"),
    ({"a": A}, {"a": YES.float()}, r"mask\['a'\]: expected a boolean tensor of shape \(3,\).*torch.float32"),
    ({"a": A}, {"a": YES[:2]}, r"mask\['a'\]: expected a boolean tensor of shape \(3,\).*\(2,\)"),
    ({"a": A}, {"a": A.bool()}, r"mask\['a'\]: .* A modality is there as a whole, or missing"),
    ({"a": A}, {"a": [True] * 3}, r"mask\['a'\]: expected a torch.Tensor, got list"),
]


@pytest.mark.parametrize(("x", "mask", "match"), BAD, ids=[match[:30] for *_, match in BAD])
def test_bad_batches_are_refused(x: Any, mask: Any, match: str) -> None:
    vae = small()
    for call in (vae.model, vae.guide, vae.encode, vae.reconstruct, vae.random_subsets, vae.initialize_output_bias):
        with pytest.raises((TypeError, ValueError), match=match):
            call(x, mask=mask)


def test_a_modality_that_no_datum_has_is_refused() -> None:
    vae, (x, _) = small(missing=True), batch()
    never = r"x\['b'\]: expected at least one datum that has this modality, got none.*or build the model without it"
    for given, named in (
        ({"a": x["a"]}, {}),
        (x, {"mask": {"b": torch.zeros(12, dtype=torch.bool)}}),
        ({**x, "b": torch.full((12, 4), NAN)}, {}),
    ):
        with pytest.raises(ValueError, match=never):
            vae.initialize_output_bias(given, **named)


def test_a_modality_is_missing_as_a_whole() -> None:
    vae, (x, _) = small(missing=True), batch()
    x["a"][3, 2] = NAN
    with pytest.raises(
        ValueError, match=r"x\['a'\]: expected finite values, got nan. A modality is missing as a whole"
    ):
        vae.guide(x)
    # Under a captured step nothing is looked at: the loss is NaN, and the step is not taken.
    with pyro.validation_enabled(False), torch.no_grad(), pytest.warns(UserWarning, match="Encountered NaN: loss"):
        assert math.isnan(Trace_ELBO().loss(vae.model, vae.guide, x))


def test_sizes_and_absent_data() -> None:
    vae, (x, mask) = small(), batch()
    with pytest.raises(ValueError, match="size: expected the number of all data, at least the 12 of the batch, got 3"):
        vae.model(x, size=3)
    with pytest.raises(ValueError, match="mask: expected data x to go with it"):
        vae.model(mask=mask)
    with pytest.raises(ValueError, match="n: expected an integer of at least 1, got 0"):
        vae.sample(0)
    with pytest.raises(ValueError, match="num_particles: expected an integer of at least 1"):
        vae.reconstruct(x, num_particles=0)
    with pytest.raises(ValueError, match=r"modality: expected one of \['a', 'b'\], got 'sound'"):
        vae.decode("sound", torch.zeros(2, D))


def test_parts_that_do_not_go_together_are_refused() -> None:
    vae = small()
    likelihoods, experts = dict(vae.likelihoods.items()), dict(vae.experts.items())
    with pytest.raises(
        ValueError, match=r"experts: expected one for each of the likelihoods.*'b'\] and experts of \['a'"
    ):
        pv.MultimodalVAE(vae.prior, likelihoods, {"a": experts["a"]})
    with pytest.raises(ValueError, match="experts: expected one for each"):
        pv.MultimodalVAE(vae.prior, {}, {})
    with pytest.raises(TypeError, match=r"likelihoods\['b'\]: expected a torch.nn.Module, got None"):
        pv.MultimodalVAE(vae.prior, {**likelihoods, "b": None}, experts)  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="prior: expected a module"):
        pv.MultimodalVAE(None, likelihoods, experts)
    with pytest.raises(ValueError, match=r"likelihoods: expected names that torch.nn.ModuleDict takes, got 'type'"):
        pv.MultimodalVAE(vae.prior, {"type": likelihoods["a"]}, {"type": experts["a"]})
    x, _ = batch()
    mixture = pv.MultimodalVAE(pv.MixturePrior(D, 3), likelihoods, experts)
    with pytest.raises(ValueError, match=r"prior: expected a normal distribution.*got MixtureSameFamily"):
        mixture.guide(x)
    wide = pv.MultimodalVAE(vae.prior, likelihoods, {**experts, "b": pv.DiagonalNormalPosterior(nn.Linear(4, 6))})
    with pytest.raises(ValueError, match=r"experts\['b'\]: expected event shape \(2,\), that of the prior, got \(3,\)"):
        wide.guide(x)
