"""Global latent variables: an autoguide beside an amortised guide, against the exact mean-field posterior."""

from __future__ import annotations

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

import pyro_vae as pv
from tests.helpers.stories import trains_alike

X = 1.5 + torch.linspace(-2.0, 2.0, 40)


def model(x: Tensor, size: int | None = None) -> None:
    """w ~ N(0, 1), z_n ~ N(w, 1), x_n ~ N(z_n, 1)."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", size or len(x), subsample=x):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor, size: int | None = None) -> None:
    """The best q(z|x) that does not depend on w is N((x + E w) / 2, 1 / 2)."""
    slope, bias = pyro.param("slope", torch.tensor(0.3)), pyro.param("bias", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("z", dist.Normal(slope * x + bias, scale))


EXACT_MEAN = (X.sum() / 2 / (1 + len(X) / 2)).item()


@pytest.mark.parametrize("kind", [AutoNormal, pytest.param(AutoMultivariateNormal, marks=pytest.mark.slow)])
def test_mini_batches_reach_the_exact_mean_field_posterior(kind: Any) -> None:
    """q(w) = N(sum x / (2 + N), 1 / (1 + N)): each datum counts once, whatever batch it is in."""
    pyro.set_rng_seed(0)
    both = pv.AutoGlobalGuide(model, guide, kind)
    optim = pv.Adam({"lr": 0.1}, scheduler=lambda adam: torch.optim.lr_scheduler.ExponentialLR(adam, 0.99))
    svi = pv.CompiledSVI(model, both, optim, pv.TraceSTL_ELBO(), compile="graph")
    batches = pv.data.Batches(X, batch_size=20, shuffle=True)
    pv.fit(svi, batches, epochs=200, size=len(X), progress=False)
    mean = both.median(X)["w"].item()
    draws = torch.stack([both(X)["w"].detach() for _ in range(1500)])
    assert mean == pytest.approx(EXACT_MEAN, abs=0.05)
    assert draws.std().item() == pytest.approx((1 + len(X)) ** -0.5, rel=0.1)
    assert pyro.param("scale").item() == pytest.approx(0.5**0.5, rel=0.05)


def test_the_loss_has_the_weights_of_n_over_b() -> None:
    """The local terms count N/B times, the global ones once."""
    both = pv.AutoGlobalGuide(model, guide)
    pyro.set_rng_seed(0)
    both(X[:10], size=40)  # made
    pyro.set_rng_seed(1)
    loss = Trace_ELBO().loss(model, both, X[:10], size=40)
    pyro.set_rng_seed(1)
    trace = poutine.trace(both).get_trace(X[:10], size=40)
    w, z = trace.nodes["w"]["value"], trace.nodes["z"]["value"]
    of_global = dist.Normal(0.0, 1.0).log_prob(w) - dist.Normal(*_parameters(both)).log_prob(w)
    of_data = dist.Normal(w, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(X[:10])
    of_data = of_data - dist.Normal(0.3 * X[:10], 1.0).log_prob(z)
    assert loss == pytest.approx(-(of_global + 4 * of_data.sum()).item(), rel=1e-5)


def _parameters(both: Any) -> tuple[Tensor, Tensor]:
    return both.global_guide.locs.w.detach(), both.global_guide.scales.w.detach()


def test_in_a_plate_of_particles_the_parameters_have_the_shapes_of_one() -> None:
    both = pv.AutoGlobalGuide(model, guide)
    elbo = Trace_ELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, both, pv.Adam({"lr": 0.01}), elbo)
    svi.step(X)
    assert _parameters(both)[0].shape == ()


def test_a_step_is_captured_and_equal() -> None:
    assert trains_alike(lambda: (model, pv.AutoGlobalGuide(model, guide)), Trace_ELBO, X) == 1


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal, AutoIAFNormal])
def test_two_guides_share_no_parameters(kind: Any) -> None:
    """All autoguides of one kind have the same names in Pyro's store, and each pair trains as if it were alone."""

    def pair(prior: Any) -> SVI:
        def story(x: Tensor) -> None:
            w = pyro.sample("w", prior.to_event(1))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(w.sum(), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        both = pv.AutoGlobalGuide(story, fixed_guide, kind)
        pyro.set_rng_seed(0)
        both(X)
        return SVI(story, both, pv.Adam({"lr": 0.1}), Trace_ELBO())

    def steps(svi: SVI, *seeds: int) -> None:
        for seed in seeds:
            pyro.set_rng_seed(seed)
            svi.step(X)

    def values(svi: SVI) -> list[Tensor]:
        return [p.detach().clone() for p in svi.guide.parameters()]

    def same(ours: list[Tensor], others: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))

    prior = dist.Normal(torch.zeros(2), 1.0)
    pyro.clear_param_store()
    alone = pair(prior)
    start = values(alone)
    steps(alone, 0, 1, 2, 3, 4, 5)
    pyro.clear_param_store()
    first = pair(prior)
    steps(first, 0, 1, 2)
    before = values(first)
    second = pair(dist.Normal(torch.tensor(5.0), 1.0).expand([3]))  # of another shape
    assert second.guide(X)["w"].shape == (3,)
    steps(second, 3, 4, 5)
    moved = values(second)
    assert same(values(first), before)
    assert same(values(pair(prior)), start)  # and not where another one has come to
    steps(first, 3, 4, 5)
    assert same(values(second), moved)
    assert same(values(first), values(alone))


def test_a_guide_goes_on_beside_another_as_it_would_alone() -> None:
    """Pyro's SVI and captured steps, by turns."""
    ends = []
    for make in (SVI, functools.partial(pv.CompiledSVI, compile="graph", check_steps=1)):
        for turns in (False, True):
            pyro.clear_param_store()
            guides = [pv.AutoGlobalGuide(model, fixed_guide) for _ in range(2)]
            svis = [make(model, both, pv.Adam({"lr": 0.1}), Trace_ELBO()) for both in guides]
            for seed in range(6):
                for i in range(1 + turns):
                    pyro.set_rng_seed(seed + 100 * i)
                    svis[i].step(X)
            ends.append([p.item() for p in guides[0].parameters()])
    assert ends[0] == ends[1] == ends[2] == ends[3]


def fixed_guide(x: Tensor, size: int | None = None) -> None:
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("z", dist.Normal(0.5 * x, 1.0))


def test_what_is_loaded_into_the_store_is_taken_over(tmp_path: Any) -> None:
    both = pv.AutoGlobalGuide(model, fixed_guide)
    svi = SVI(model, both, pv.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        svi.step(X)
    trained = both.median(X)["w"].item()
    pyro.get_param_store().save(tmp_path / "store")
    for guide_of in (both, pv.AutoGlobalGuide(model, fixed_guide)):
        svi = SVI(model, guide_of, pv.Adam({"lr": 0.1}), Trace_ELBO())
        svi.step(X)
        pyro.get_param_store().load(tmp_path / "store")
        guide_of(X)
        assert guide_of.median(X)["w"].item() == trained
        pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    new = pv.AutoGlobalGuide(model, fixed_guide)
    assert new.median(X)["w"].item() == trained

    def wide(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w.sum(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    new = pv.AutoGlobalGuide(wide, fixed_guide)
    pyro.clear_param_store()
    new(X)
    pyro.get_param_store().load(tmp_path / "store")
    with pytest.raises(ValueError, match=r"locs.w: expected an entry of shape \(2,\) in Pyro's parameter store, got"):
        new(X)


class Scaled(nn.Module):
    """p(x|z, w) = N(w z, 1)."""

    def forward(self, z: Tensor, draws: dict[str, Tensor]) -> Any:
        return dist.Normal(draws["w"].unsqueeze(-1) * z, 1.0).to_event(1)


def scaled_vae() -> Any:
    return pv.VAE(pv.StandardNormalPrior(2), Scaled(), pv.DiagonalNormalPosterior(nn.Linear(2, 4)))


def draw_w() -> dict[str, Tensor]:
    return {"w": pyro.sample("w", dist.LogNormal(0.0, 1.0))}


def test_globals_come_before_the_plate_of_a_vae() -> None:
    vae = scaled_vae()
    story = pv.with_globals(vae.model, draw_w)
    trace = poutine.trace(story).get_trace(torch.zeros(5, 2), size=50)
    assert trace.nodes["w"]["cond_indep_stack"] == ()
    assert [name for name, site in trace.nodes.items() if site["type"] == "sample"] == ["w", "data", "z", "x"]
    trace.compute_log_prob()
    assert trace.nodes["w"]["scale"] == 1
    assert trace.nodes["z"]["scale"] == 10
    assert Predictive(story, num_samples=3)(None, size=4)["x"].shape == (3, 4, 2)


def test_a_vae_with_globals_trains_and_is_judged_given_them() -> None:
    """x = w z + noise of variance 1: the variance of x says that w^2 = 3."""
    pyro.set_rng_seed(0)
    x = 2.0 * torch.randn(400, 2)
    vae = scaled_vae()
    story = pv.with_globals(vae.model, draw_w)
    both = pv.AutoGlobalGuide(story, vae.guide)
    svi = pv.CompiledSVI(story, both, pv.Adam({"lr": 0.02}), Trace_ELBO(), compile="graph")
    pv.fit(svi, pv.data.Batches(x, batch_size=100, shuffle=True), epochs=120, size=400, progress=False)
    w = both.median(x)["w"]
    assert w.item() == pytest.approx(3**0.5, rel=0.1)
    given = poutine.condition(story, {"w": w})
    elbo, bound = pv.bounds(given, vae.guide, x, num_particles=100)
    exact = dist.Normal(0.0, (1 + w**2).sqrt()).log_prob(x).sum(-1)
    assert bound.mean().item() == pytest.approx(exact.mean().item(), abs=0.05)
    assert elbo.mean() < exact.mean()


def test_a_map_estimate() -> None:
    both = pv.AutoGlobalGuide(model, guide, AutoDelta)
    svi = SVI(model, both, pv.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(200):
        svi.step(X)
    assert both.median(X)["w"].item() == pytest.approx(EXACT_MEAN, abs=0.15)


def test_refused_with_a_reason() -> None:
    def whole(x: Tensor, size: int | None = None) -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0))
        guide(x, size)

    with pytest.raises(ValueError, match="samples every latent variable"):
        pv.AutoGlobalGuide(model, whole)(X)
    with pytest.raises(ValueError, match=r"expected a draw of 'z', which lies in the subsampled plate 'data'"):
        pv.AutoGlobalGuide(model, lambda x, size=None: None)(X, size=100)
    with pytest.raises(TypeError, match="kind: expected a function that makes an AutoGuide, got a function"):
        pv.AutoGlobalGuide(model, guide, lambda blocked: guide)(X)
    story = pv.with_globals(scaled_vae().model, draw_w)
    with pytest.raises(TypeError, match="expected the data as a positional argument"):
        story(size=5)
    with pytest.raises(TypeError, match=r"globals_fn: expected a dictionary or tuple.*of shape \(3,\)"):
        pv.with_globals(model, lambda: torch.zeros(3))(X)
    assert pv.with_globals(model, lambda: None)(X) is None


@pytest.mark.parametrize("batches", [1, 2])
def test_fit_warns_of_a_global_variable_without_size(batches: int) -> None:
    svi = SVI(model, pv.AutoGlobalGuide(model, guide), pv.Adam({"lr": 0.01}), Trace_ELBO())
    data = list(X.split(len(X) // batches))
    if batches > 1:
        with pytest.warns(UserWarning, match=r"'w' is global.*each of 2 batches.*fit\(size=...\)"):
            pv.fit(svi, data, epochs=1, progress=False)
    else:
        pv.fit(svi, data, epochs=1, progress=False)
    pv.fit(svi, data, epochs=1, size=len(X), progress=False)


def test_what_is_left_out_before_the_globals_is_filled() -> None:
    """A model(x, y=None, *given), of which y is not given."""
    seen = []

    def story(x: Tensor, y: Any = None, *given: Any) -> None:
        seen.append((y, given))

    pv.with_globals(story, lambda: {"w": 1.0})(X)
    pv.with_globals(story, lambda: {"w": 1.0})(X, "label", "other")
    assert seen == [(None, ({"w": 1.0},)), ("label", ("other", {"w": 1.0}))]
    with pytest.raises(TypeError, match=r"after 1 positional arguments, got .*<lambda>, which takes no more"):
        pv.with_globals(lambda x: None, draw_w)(X)


class HyperPrior(nn.Module):
    """p(z | w) = N(w, 1)."""

    def forward(self, draws: dict[str, Tensor]) -> Any:
        return dist.Normal(draws["w"].unsqueeze(-1).expand(2), 1.0).to_event(1)


class Identity(nn.Module):
    """p(x | z) = N(z, 1)."""

    def forward(self, z: Tensor, *given: Any) -> Any:
        return dist.Normal(z, 1.0).to_event(1)


def test_a_prior_may_depend_on_globals() -> None:
    """w ~ N(0, 1), z ~ N(w, 1), x ~ N(z, 1): q(w) around sum x / (2 + N D)."""
    pyro.set_rng_seed(0)
    x = 1.5 + torch.randn(100, 2)
    vae = pv.VAE(HyperPrior(), Identity(), pv.DiagonalNormalPosterior(nn.Linear(2, 4)))
    story = pv.with_globals(vae.model, lambda: {"w": pyro.sample("w", dist.Normal(0.0, 1.0))})
    both = pv.AutoGlobalGuide(story, vae.guide)
    svi = pv.CompiledSVI(story, both, pv.Adam({"lr": 0.05}), Trace_ELBO(), compile="graph")
    pv.fit(svi, [x], epochs=300, progress=False)
    assert both.median(x)["w"].item() == pytest.approx((x.sum() / (2 + x.numel())).item(), abs=0.1)
