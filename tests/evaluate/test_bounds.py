"""Bounds over a whole set: the same numbers whatever the chunks and whoever computes them, in bounded memory."""

from __future__ import annotations

import contextlib
import math
import random
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.evaluate import captured as captured_module
from pyro_vae.infer import CaptureError

BOUNDS = sys.modules["pyro_vae.evaluate.bounds"]  # the package's `bounds` is the function


@pytest.fixture
def always_captured(monkeypatch):
    """Also small evaluations are captured; returns how many times a captured pass was made, and made in vain."""
    monkeypatch.setattr(BOUNDS, "_BYTES_TO_CAPTURE", 0)
    made = {"captured": 0, "by Pyro": 0}

    def count(*args, **kwargs):
        result = captured_module.captured_pass(*args, **kwargs)
        made["captured" if result is not None else "by Pyro"] += 1
        return result

    monkeypatch.setattr(BOUNDS, "captured_pass", count)
    return made


def wider_vae(pixels: int = 64) -> pv.VAE:
    """A VAE whose log-densities are summed in groups (see `bernoulli_sums`)."""
    return pv.VAE(
        pv.StandardNormalPrior(2),
        pv.BernoulliLikelihood(pv.MLP(2, pixels, hidden_dims=(8,))),
        pv.DiagonalNormalPosterior(pv.MLP(pixels, 4, hidden_dims=(8,))),
    ).eval()


def binary(rows: int, pixels: int) -> torch.Tensor:
    return (torch.rand(rows, pixels, generator=torch.Generator().manual_seed(2)) < 0.4).float()


# -- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_bytes", [1, 20_000, 2**28])
@pytest.mark.parametrize("compile", [False, "graph"])
def test_whole_set_at_the_optimum_is_log_p_x(linear_gaussian, always_captured, compile, max_bytes):
    vae, x = linear_gaussian.vae, linear_gaussian.x[:50]
    elbo, iwae = pv.bounds(vae.model, vae.guide, x, num_particles=7, max_bytes=max_bytes, compile=compile)
    torch.testing.assert_close(elbo, linear_gaussian.log_px[:50], rtol=0, atol=1e-4)
    torch.testing.assert_close(iwae, linear_gaussian.log_px[:50], rtol=0, atol=1e-4)
    assert always_captured["captured"] == (compile == "graph")


def test_a_captured_pass_gives_what_pyro_gives_on_the_same_draws(always_captured):
    vae, x = wider_vae(), binary(11, 64)
    results = []
    for compile in (False, "graph"):
        pyro.set_rng_seed(0)
        results.append(pv.bounds(vae.model, vae.guide, x, num_particles=20, compile=compile))
    assert always_captured["captured"] == 1
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(graph, eager, rtol=0, atol=1e-4)
    assert (results[0].iwae > results[0].elbo).all()


@pytest.mark.slow
def test_a_compiled_pass_gives_what_pyro_gives_on_the_same_draws(always_captured, monkeypatch):
    monkeypatch.setattr(BOUNDS, "_BYTES_TO_COMPILE", 0)
    vae, x = wider_vae(), binary(11, 64)
    results = []
    for compile in (False, True):
        pyro.set_rng_seed(0)
        results.append(pv.bounds(vae.model, vae.guide, x, num_particles=20, compile=compile))
    assert always_captured["captured"] == 1
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_particles", [1, 13, 30])
def test_every_datum_is_evaluated_once_with_all_its_particles(always_captured, num_particles):
    """Chunks and passes that do not divide the data and the particles: the bound of a datum is its own."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.linspace(-3, 3, 23)
    for max_bytes in (300, 3_000, 30_000):
        elbo, iwae = pv.bounds(model, guide, x, num_particles=num_particles, max_bytes=max_bytes, compile="graph")
        exact = dist.Normal(0.0, math.sqrt(2.0)).log_prob(x)
        torch.testing.assert_close(elbo, exact, rtol=0, atol=1e-5)
        torch.testing.assert_close(iwae, exact, rtol=0, atol=1e-5)
    assert always_captured == {"captured": 3, "by Pyro": 0}


@pytest.mark.parametrize("captured", [False, True])
def test_passes_over_particles_are_joined_rightly(monkeypatch, captured):
    """Ten particles in passes of four: what all of them give at once."""
    seen = []

    def by_pyro(chunk, particles):
        seen.append(torch.randn(particles, len(chunk[0])) * 3)
        return seen[-1]

    whole = BOUNDS._Passes(2, 4, 10, by_pyro, (lambda chunk: by_pyro(chunk, 4)) if captured else None, 2)
    data = BOUNDS.Data((torch.zeros(2, 1),), {})
    elbo, iwae = (BOUNDS._by_graph if captured else BOUNDS._by_pyro)(data, whole, 0, 2)
    assert [len(log_w) for log_w in seen] == ([4, 4, 4] if captured else [4, 4, 2])
    together = torch.cat(seen)[:10]
    torch.testing.assert_close(elbo, pv.elbo(together))
    torch.testing.assert_close(iwae, pv.iwae(together))


def test_log_likelihood_is_the_importance_weighted_bound(make_vae, binary_data):
    vae = make_vae()
    with torch.no_grad():
        vae.posterior.network.output.bias[:2] += 1.0
    pyro.set_rng_seed(0)
    elbo, iwae = pv.bounds(vae.model, vae.guide, binary_data, num_particles=50)
    pyro.set_rng_seed(0)
    assert torch.equal(pv.log_likelihood(vae.model, vae.guide, binary_data, num_particles=50), iwae)
    assert (iwae > elbo).all()


def test_no_gradient_is_kept_and_the_measuring_passes_leave_no_trace(make_vae, binary_data):
    vae = make_vae()
    vae.posterior.network.layers.insert(1, nn.BatchNorm1d(8))
    vae.posterior.network.layers[1].eval()
    vae.posterior.network.layers[1].register_buffer("calls", torch.zeros(()))
    vae.posterior.network.layers[1].register_forward_hook(lambda layer, args, out: layer.calls.add_(1) and None)
    pyro.set_rng_seed(0)
    bounds = pv.bounds(vae.model, vae.guide, binary_data, num_particles=3)
    assert vae.posterior.network.layers[1].calls == 1
    assert not bounds.iwae.requires_grad
    pyro.set_rng_seed(0)
    expected = pv.log_weights(vae.model, vae.guide, binary_data, num_particles=3)
    torch.testing.assert_close(bounds.elbo, pv.elbo(expected))


# -- what is cut ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compile", [False, "graph"])
def test_positional_trees_and_the_mask_are_cut_and_keywords_are_not(always_captured, compile):
    """x ~ N(z + label, 1) where observed; the shift of all data comes by keyword."""

    def model(batch, scales, count, *, mask, shift):
        assert count == 3
        assert len(shift) == 23
        x, label = batch["x"], batch["label"]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            p = dist.Normal(z + label + shift.mean(), scales[0])
            pyro.sample("x", p.mask(mask), obs=x)

    def guide(batch, scales, count, *, mask, shift):
        x, label = batch["x"], batch["label"]
        with pyro.plate("data", len(x)):
            residual = torch.where(mask, (x - label - shift.mean()) / (1 + scales[0] ** 2), 0.0)
            variance = torch.where(mask, scales[0] ** 2 / (1 + scales[0] ** 2), 1.0)
            pyro.sample("z", dist.Normal(residual, variance.sqrt()))

    x, label, scale = torch.linspace(-3, 3, 23), torch.arange(23.0) % 3, 1 + torch.arange(23.0) / 23
    mask, shift = torch.arange(23) % 4 > 0, torch.linspace(0, 1, 23)
    exact = dist.Normal(label + shift.mean(), (1 + scale**2).sqrt()).log_prob(x).where(mask, torch.tensor(0.0))
    args = ({"x": x, "label": label}, [scale], 3)
    for max_bytes in (500, 10_000):
        elbo = pv.bounds(
            model, guide, *args, mask=mask, shift=shift, num_particles=3, max_bytes=max_bytes, compile=compile
        ).elbo
        torch.testing.assert_close(elbo, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 5])
def test_images_of_convolutions_are_captured(always_captured, rows, dtype):
    decoder = nn.Sequential(nn.Linear(2, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 1, 3, padding=1))
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 4))
    vae = pv.VAE(
        pv.StandardNormalPrior(2),
        pv.BernoulliLikelihood(pv.AnyLeadingDims(decoder, event_dim=1), event_shape=(1, 4, 4)),
        pv.DiagonalNormalPosterior(encoder),
    )
    vae.eval().to(dtype)
    x = binary(rows, 16).reshape(rows, 1, 4, 4).to(dtype)
    results = []
    for compile in (False, "graph"):
        pyro.set_rng_seed(0)
        results.append(pv.log_likelihood(vae.model, vae.guide, x, num_particles=np.int64(20), compile=compile))
    assert always_captured["captured"] == 1
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-4)


def test_bad_arguments_are_refused(make_vae, binary_data):
    vae = make_vae()
    with pytest.raises(ValueError, match=r"args\[0\]: expected data of at least one row"):
        pv.log_likelihood(vae.model, vae.guide, binary_data[:0])
    with pytest.raises(TypeError, match=r"x: expected a torch.Tensor, got list"):
        pv.log_likelihood(vae.model, vae.guide, [binary_data])
    with pytest.raises(TypeError, match=r"args\[0\]: expected a torch.Tensor, got a numpy array"):
        pv.log_likelihood(vae.model, vae.guide, binary_data.numpy())
    with pytest.raises(TypeError, match=r"mask: expected a torch.Tensor, got a numpy array"):
        pv.log_likelihood(vae.model, vae.guide, binary_data, mask=np.ones(64, dtype=bool))
    for args in ((), (None, 3), (torch.tensor(1.0),)):
        with pytest.raises(TypeError, match=r"at least one tensor \(N, ...\), got"):
            pv.log_likelihood(vae.model, vae.guide, *args)
    with pytest.raises(ValueError, match=r"args\[1\]: expected 64 rows as in args\[0\], got 63"):
        pv.bounds(vae.model, vae.guide, binary_data, torch.zeros(63))
    with pytest.raises(ValueError, match=r"mask: expected 64 rows as in args\[0\], got 6"):
        pv.bounds(vae.model, vae.guide, binary_data, mask=torch.ones(6))
    with pytest.raises(ValueError, match=r"model: expected one weight for each of 2 rows of the data, got 1"):
        pv.bounds(
            lambda x: pyro.sample("x", dist.Normal(0.0, 1.0).to_event(0), obs=x.sum()), lambda x: None, binary_data
        )
    with pytest.raises(ValueError, match=r"num_particles: expected an integer of at least 1, got 0"):
        pv.log_likelihood(vae.model, vae.guide, binary_data, num_particles=0)
    with pytest.raises(ValueError, match=r"max_bytes: expected an integer of at least 1, got -1"):
        pv.log_likelihood(vae.model, vae.guide, binary_data, max_bytes=-1)
    with pytest.raises(ValueError, match=r"compile: expected True, False or 'graph', got 'always'"):
        pv.bounds(vae.model, vae.guide, binary_data, compile="always")
    with pytest.raises(ValueError, match=r"precision: expected 'float32' or 'bf16', got 'half'"):
        pv.bounds(vae.model, vae.guide, binary_data, precision="half")
    assert math.isfinite(pv.log_likelihood(vae.model, vae.guide, binary_data, num_particles=2).sum())


# -- what each pass costs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compile", [False, "graph"])
@pytest.mark.parametrize("num_particles", [1, 10, 200])
@pytest.mark.parametrize("large", ["encoder", "decoder"])
def test_memory_bound_is_kept(binary_data, monkeypatch, always_captured, large, num_particles, compile):
    width = {"encoder": 8, "decoder": 8, large: 1000}
    vae = pv.VAE(
        pv.StandardNormalPrior(2),
        pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=(width["decoder"],))),
        pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=(width["encoder"],))),
    )
    created = []

    def metered(run):
        def pass_(*args):
            with BOUNDS._CreatedBytes() as meter:
                log_w = run(*args)
            created.append(meter.total)
            return log_w

        return pass_

    run = BOUNDS._run

    def run_metered(data, passes, progress):
        by_graph = None if passes.captured is None else metered(passes.captured)
        return run(data, passes._replace(by_pyro=metered(passes.by_pyro), captured=by_graph), progress)

    monkeypatch.setattr(BOUNDS, "_run", run_metered)
    x = binary_data.repeat(4, 1) if num_particles < 200 else binary_data[:6]
    pv.bounds(vae.model, vae.guide, x, num_particles=num_particles, max_bytes=300_000, compile=compile)
    fixed = 60_000  # weights' views and the like, which do not grow with data or particles
    assert max(created) < 300_000 + fixed
    assert max(created) > 300_000 / 4  # and the bound is made use of


def test_the_encoder_sees_each_datum_once_a_pass(make_vae, binary_data):
    vae, rows = make_vae(), []
    vae.posterior.network.register_forward_hook(lambda module, args, out: rows.append(args[0].numel() // 6))
    pv.bounds(vae.model, vae.guide, binary_data, num_particles=50)
    assert rows[-1] == 64


def test_small_evaluations_are_left_to_pyro(make_vae, binary_data, monkeypatch):
    monkeypatch.setattr(BOUNDS, "captured_pass", lambda *args, **kwargs: pytest.fail("captured"))
    vae = make_vae()
    pv.bounds(vae.model, vae.guide, binary_data, num_particles=50)


@pytest.mark.parametrize(("bytes_to_compile", "compile", "compiled"), [(0, True, 1), (2**60, True, 0), (0, "graph", 0)])
def test_a_large_evaluation_is_compiled(always_captured, monkeypatch, bytes_to_compile, compile, compiled):
    monkeypatch.setattr(BOUNDS, "_BYTES_TO_COMPILE", bytes_to_compile)
    calls = []
    monkeypatch.setattr(captured_module, "compiled", lambda graph, held, inputs: calls.append(1) or graph)
    vae = wider_vae()
    pv.bounds(vae.model, vae.guide, binary(9, 64), num_particles=3, compile=compile)
    assert len(calls) == compiled


def test_a_progress_bar_counts_the_data(make_vae, binary_data, capsys):
    vae = make_vae()
    pv.bounds(vae.model, vae.guide, binary_data, num_particles=2)
    assert capsys.readouterr().err == ""
    pv.bounds(vae.model, vae.guide, binary_data, num_particles=2, progress=True)
    assert "64/64" in capsys.readouterr().err


@pytest.mark.parametrize("compile", [False, "graph"])
def test_views_and_classes_are_summed_in_every_chunk(always_captured, compile):
    """Four views of each datum, a class of each datum, a shift that is conditioned on: no latent variable is drawn."""
    probabilities, means = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 2.0])

    def model(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 5.0))
        with pyro.plate("pictures", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(probabilities), infer={"enumerate": "parallel"})
            with pyro.plate("views", 4, dim=-2):
                pyro.sample("x", dist.Normal(means[k] + shift, 1.0), obs=x.T)

    x = torch.randn(23, 4)
    exact = (probabilities.log() + dist.Normal(means + 0.5, 1.0).log_prob(x[..., None]).sum(1)).logsumexp(-1)
    conditioned = pyro.poutine.condition(model, {"shift": torch.tensor(0.5)})
    elbo, iwae = pv.bounds(
        conditioned, lambda x: None, x, num_particles=3, plate="pictures", max_bytes=2_000, compile=compile
    )
    torch.testing.assert_close(elbo, exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(iwae, exact, rtol=0, atol=1e-5)
    assert always_captured["captured"] == (compile == "graph")


# -- what a graph cannot stand for ---------------------------------------------------------------------------------


def linear_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def reads_a_value(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0 if x.sum().item() < 1e9 else 2.0), obs=x)


def draws_in_python(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        random.random()
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def selects_rows(x):
    """The mean of the positive data is shifted and shifted back; a graph freezes how many there are."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        shift = torch.zeros_like(x)
        shift[x > 0] = x[x > 0] * 0 + 1.0
        pyro.sample("x", dist.Normal(z + shift - (x > 0).float(), 1.0), obs=x)


class Counts:
    """A model whose likelihood depends on a list that every run appends to."""

    def __init__(self):
        self.runs = []

    def __call__(self, x):
        self.runs.append(len(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0 + len(self.runs)), obs=x)


def has_no_kernel(x):
    """What the tracer cannot run, for another reason than a value that is read."""
    if torch.fx.experimental.proxy_tensor.get_proxy_mode() is not None:
        raise NotImplementedError("no such kernel")
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("model", [reads_a_value, draws_in_python, selects_rows, has_no_kernel])
def test_a_program_that_no_graph_stands_for_is_evaluated_by_pyro(always_captured, model):
    x = torch.linspace(-3, 3, 23)
    elbo = pv.bounds(model, linear_guide, x, num_particles=5, max_bytes=1_000).elbo
    torch.testing.assert_close(elbo, dist.Normal(0.0, math.sqrt(2.0)).log_prob(x), rtol=0, atol=1e-5)
    assert always_captured["captured"] <= (model is selects_rows)


def test_a_graph_that_differs_from_pyro_is_not_used(always_captured):
    x = torch.linspace(-3, 3, 23)
    pv.bounds(Counts(), linear_guide, x, num_particles=5, max_bytes=1_000)
    assert always_captured == {"captured": 0, "by Pyro": 1}


@pytest.mark.parametrize("fault", ["none", "a rounding error", "a few draws", "one datum", "not a number"])
def test_a_graph_is_compared_with_pyro_on_the_same_draws(fault):
    chunk = [torch.linspace(-3, 3, 20)]

    def by_pyro(tensors):
        return torch.randn(100, 20) - 300.0 + tensors[0]

    def run(tensors):
        log_w = by_pyro(tensors)
        if fault == "a rounding error":
            return log_w + 1e-4
        if fault == "a few draws":
            log_w[:10, 3] += 5.0
        if fault == "one datum":
            log_w[:, 3] += 5.0
        if fault == "not a number":
            log_w[:, 3] = math.nan
        return log_w

    before = torch.get_rng_state()
    with pytest.raises(CaptureError) if fault in ("one datum", "not a number") else contextlib.nullcontext():
        captured_module._compare(run, by_pyro, chunk, 1e-4)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pass_that_is_not_finite_is_computed_by_pyro(always_captured, monkeypatch, linear_gaussian):
    vae, x = linear_gaussian.vae, linear_gaussian.x[:50]
    monkeypatch.setattr(BOUNDS, "captured_pass", lambda *args, **kwargs: lambda chunk: torch.full((7, 50), math.nan))
    iwae = pv.log_likelihood(vae.model, vae.guide, x, num_particles=7)
    torch.testing.assert_close(iwae, linear_gaussian.log_px[:50], rtol=0, atol=1e-4)


def test_handlers_around_the_call_see_every_pass(always_captured, make_vae, binary_data):
    vae = make_vae()
    with pyro.poutine.scale(scale=2.0):
        pv.bounds(vae.model, vae.guide, binary_data, num_particles=2)
    assert always_captured == {"captured": 0, "by Pyro": 0}


@pytest.mark.parametrize("row", [0, 30, 63])
@pytest.mark.parametrize("compile", [False, "graph"])
@pytest.mark.parametrize("plain", [False, True])
def test_data_off_the_support_are_refused_wherever_they_are(
    always_captured, binary_data, make_vae, plain, compile, row
):
    vae = make_vae()

    def plain_model(x):
        pv.module("vae", vae)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=vae.likelihood.network(z)).to_event(1), obs=x)

    x = binary_data.clone()
    x[row, 2] = 0.4
    with pytest.raises(ValueError, match=r"got 0.4|support"):
        pv.bounds(plain_model if plain else vae.model, vae.guide, x, num_particles=4, max_bytes=4_000, compile=compile)


# -- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compile", [False, "graph"])
def test_bfloat16_products_change_a_bound_by_little(always_captured, compile):
    vae, x = wider_vae(), binary(11, 64)
    results = []
    for precision in ("float32", "bf16"):
        pyro.set_rng_seed(0)
        results.append(
            pv.log_likelihood(vae.model, vae.guide, x, num_particles=20, compile=compile, precision=precision)
        )
    assert not torch.equal(*results)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0.2)


def test_parameters_are_cast_once_for_all_passes(always_captured, monkeypatch):
    monkeypatch.setattr(BOUNDS, "_BYTES_TO_COMPILE", 0)
    graphs = []
    monkeypatch.setattr(captured_module, "compiled", lambda graph, held, inputs: graphs.append((graph, held)) or graph)
    vae, x = wider_vae(), binary(11, 64)
    pv.bounds(vae.model, vae.guide, x, num_particles=5, max_bytes=20_000, precision="bf16")
    assert always_captured["captured"] == 1
    graph, held = graphs[0]
    assert sum(t.dtype is torch.bfloat16 for t in held) == 4  # the weights of both networks' two layers
    casts = [n for n in graph.graph.nodes if n.target is torch.ops.aten._to_copy.default]
    assert casts
    assert not any(cast.args[0].op == "placeholder" and "held" in cast.args[0].name for cast in casts)
