"""CompiledSVI against Pyro's SVI: training, keys, what is noticed, what is refused."""

import copy
import logging
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import pyro_vae as pv
from pyro_vae.infer import Adam, CaptureError, CaptureWarning, CompiledSVI
from tests.helpers.programs import PROGRAMS, SmallVAE, binary
from tests.helpers.vae import small_vae


def graph_svi(model: Any, guide: Any, **options: Any) -> CompiledSVI:
    return CompiledSVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO(), **{"compile": "graph", **options})


def train(svi: Any, batches: list[Tensor], **kwargs: Any) -> list[float]:
    pyro.set_rng_seed(5)
    return [svi.step(x, **kwargs) for x in batches]


@pytest.mark.parametrize("compile", [False, "graph"])
def test_training_ends_where_pyros_ends(compile: Any) -> None:
    vae = SmallVAE()
    other = copy.deepcopy(vae)
    batches = [binary(5 - (i % 7 == 6)) for i in range(60)]  # a ragged batch now and then
    losses = train(SVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO()), batches)
    pyro.clear_param_store()
    svi = graph_svi(other.model, other.guide, compile=compile)
    assert train(svi, batches) == losses
    for p, q in zip(vae.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    assert svi.captures == (2 if compile else 0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_compiled_training_ends_where_pyros_ends(precision: Any) -> None:
    vae = SmallVAE()
    other = copy.deepcopy(vae)
    batches = [binary(5) for _ in range(300)]
    schedule = {"scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.99), "clip_norm": 5.0}
    want = train(SVI(vae.model, vae.guide, Adam({"lr": 0.01}, **schedule), Trace_ELBO()), batches)
    pyro.clear_param_store()
    optim = Adam({"lr": 0.01}, **schedule)
    svi = CompiledSVI(other.model, other.guide, optim, Trace_ELBO(), precision=precision, compile_after=1)
    got = train(svi, batches)
    tolerance = 1e-4 if precision == "float32" else 3e-2
    assert torch.allclose(torch.tensor(got), torch.tensor(want), rtol=tolerance)
    for p, q in zip(vae.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, atol=30 * tolerance * 0.01, rtol=tolerance)
    assert all(p.dtype is torch.float32 for p in other.parameters())
    x = binary(5)
    x[0, 0] = float("nan")
    before = copy.deepcopy((dict(other.state_dict()), optim.get_state()["params"]))
    assert not torch.isfinite(svi.update(x))
    assert all(torch.equal(v, before[0][k]) for k, v in other.state_dict().items())
    for name, state in optim.get_state()["params"].items():
        assert all(torch.equal(v, before[1][name][k]) for k, v in state.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.filterwarnings("ignore:.*was not registered in the param store:UserWarning")
def test_every_program_trains_compiled_as_uncompiled(name: str) -> None:
    program = PROGRAMS[name]
    ends = []
    # A bias before batch normalisation has gradient zero but for rounding, which Adam would blow up to whole steps.
    options = {"lr": 1e-3, "eps": 1e-3}
    for compile in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        svi = CompiledSVI(*program.make(), Adam(options), program.loss(), compile=compile, compile_after=1)
        losses = [svi.step(*program.args, **program.kwargs) for _ in range(5)]
        ends.append((losses, [v.detach().clone() for v in pyro.get_param_store().values()]))
    assert torch.allclose(torch.tensor(ends[0][0]), torch.tensor(ends[1][0]), rtol=1e-4, atol=1e-5)
    for eager, captured in zip(ends[0][1], ends[1][1], strict=True):
        assert torch.allclose(eager, captured, atol=1e-4, rtol=1e-3)


def test_capturing_is_not_a_step() -> None:
    model, guide = PROGRAMS["batch norm and dropout"].make()
    module = model.__self__
    svi = graph_svi(model, guide)
    svi.backward(binary())
    before = copy.deepcopy(module.state_dict())
    state = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_vae.infer.compiled.svi.CapturedStep.__call__", lambda self, tensors: (torch.zeros(()), []))
        svi.backward(binary())
    assert svi.captures == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert pyro.infer.util.is_validation_enabled()
    assert not isinstance(torch.ones(()).item(), Tensor)


def test_a_tensor_argument_is_an_input_and_a_python_value_part_of_the_key(caplog: pytest.LogCaptureFixture) -> None:
    vae = SmallVAE()
    svi = graph_svi(vae.model, vae.guide)
    with caplog.at_level(logging.INFO, logger="pyro_vae.infer.compiled"):
        for beta in (0.1, 0.4, 0.7):
            svi.step(binary(), beta=torch.tensor(beta))
    assert svi.captures == 1
    assert "captured step" in caplog.text
    for beta in (0.5, 0.5, 0.25, 0.25):
        svi.step(binary(), beta=beta)
    assert svi.captures == 3
    eager = CompiledSVI(vae.model, vae.guide, svi.optim, Trace_ELBO(), compile=False)
    pyro.set_rng_seed(2)
    want = eager.evaluate_loss(binary(), beta=torch.tensor(0.3))
    for _ in range(3):
        pyro.set_rng_seed(2)
        assert svi.evaluate_loss(binary(), beta=torch.tensor(0.3)) == pytest.approx(want, rel=1e-6)


def test_captures_are_bounded() -> None:
    vae = SmallVAE()
    svi = graph_svi(vae.model, vae.guide, max_captures=2)
    batches = [binary(n) for n in (2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5)]
    with pytest.warns(UserWarning, match="max_captures=2"):
        losses = train(svi, batches)
    assert min(losses) > 0
    assert svi.captures == 2


def test_training_and_evaluation_modes_have_graphs_of_their_own() -> None:
    model, guide = PROGRAMS["batch norm and dropout"].make()
    module = model.__self__
    svi = graph_svi(model, guide)
    for _ in range(3):
        svi.step(binary())
    module.eval()
    buffers = {k: v.clone() for k, v in module.named_buffers()}
    values = set()
    for _ in range(3):
        pyro.set_rng_seed(1)
        values.add(svi.evaluate_loss(binary()))
    assert len(values) == 1
    assert all(torch.equal(v, buffers[k]) for k, v in module.named_buffers())
    module.train()
    svi.step(binary())
    assert not torch.equal(module.encoder[1].running_mean, buffers["encoder.1.running_mean"])


def test_what_changes_is_noticed() -> None:
    vae = SmallVAE()
    svi = graph_svi(vae.model, vae.guide)
    for _ in range(3):
        svi.step(binary())
    vae.encoder[0].weight.requires_grad_(False)
    vae.eval()  # Pyro warns of frozen parameters in training mode
    frozen = vae.encoder[0].weight.clone()
    for _ in range(4):
        svi.step(binary())
    assert torch.equal(vae.encoder[0].weight, frozen)
    vae.decoder = torch.nn.Linear(2, 6)
    pyro.clear_param_store()
    start = vae.decoder.weight.detach().clone()
    for _ in range(4):
        svi.step(binary())
    assert not torch.equal(vae.decoder.weight, start)


def test_a_cleared_store_starts_anew_as_with_pyro() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

    svi = graph_svi(model, lambda x: None)
    for _ in range(5):
        svi.step(torch.ones(4))
    assert pyro.param("loc").item() > 0.03
    pyro.clear_param_store()
    svi.step(torch.ones(4))
    assert pyro.param("loc").item() == pytest.approx(0.01, abs=1e-6)


def location(scale: Any) -> Any:
    """A model with one parameter, whose observations have the scale that a function of the data gives."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale(x)), obs=x)

    return model


class Counter(torch.nn.Module):
    count = 0

    def model(self, x: Tensor) -> None:
        self.count += 1
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1 + self.count), obs=x)


REFUSED = {
    "control flow on data": (lambda: location(lambda x: 1.0 if x.mean() > 0 else 2.0), "x.mean"),
    "Python's random numbers": (lambda: location(lambda x: 1 + random.random()), "random numbers"),
    "a counter": (lambda: Counter().model, "count"),
    "a boolean index": (lambda: location(lambda x: x[x > 0].exp().mean()), "boolean index"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_graph_can_stand_for_is_left_to_pyro_with_its_line(name: str) -> None:
    make, message = REFUSED[name]
    batches = [torch.randn(3) for _ in range(6)]

    def trained(svi: Any) -> list[float]:
        random.seed(0)
        return train(svi, batches)

    losses = trained(SVI(make(), lambda x: None, Adam({"lr": 0.01}), Trace_ELBO()))
    pyro.clear_param_store()
    svi = graph_svi(make(), lambda x: None)
    with pytest.warns(CaptureWarning, match=message) as seen:
        assert trained(svi) == losses
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert svi.captures == 0
    svi = graph_svi(make(), lambda x: None, on_refusal="raise")
    svi.step(batches[0])
    with pytest.raises(CaptureError, match=message):
        svi.step(batches[0])
    assert pyro.infer.util.is_validation_enabled()


class Hidden:
    """A number where no watch looks."""

    def __init__(self) -> None:
        self.values = {"scale": [1.0], "other": object()}


@pytest.mark.parametrize("call", [1, 9])
def test_what_changes_out_of_sight_is_found_by_the_audit(call: int) -> None:
    hidden = Hidden()

    def read(x: Tensor) -> float:
        return vars(hidden)["values"]["scale"][0]  # a way that the watch does not follow

    svi = graph_svi(location(read), lambda x: None)
    train(svi, [torch.ones(3)] * (1 + call))
    hidden.values["scale"][0] = 2.0
    with pytest.raises(CaptureError, match=r"the loss is .* at captured call (1|8)"):
        train(svi, [torch.ones(3)] * 12)


def test_the_audit_can_be_tightened_and_left_out() -> None:
    hidden = Hidden()
    model = location(lambda x: vars(hidden)["values"]["scale"][0])
    tight, never = (graph_svi(model, lambda x: None, check_steps=every) for every in (1, 0))
    for svi in (tight, never):
        hidden.values["scale"][0] = 1.0
        train(svi, [torch.ones(3)] * 20)
        hidden.values["scale"][0] = 2.0
        if svi is never:
            train(svi, [torch.ones(3)] * 20)
        else:
            with pytest.raises(CaptureError, match="captured call 20"):
                svi.step(torch.ones(3))


@pytest.mark.parametrize("compile", [False, "graph"])
def test_a_step_that_is_not_finite_is_not_applied(compile: Any) -> None:
    vae = SmallVAE()
    svi = graph_svi(vae.model, vae.guide, compile=compile)
    for _ in range(3):
        svi.step(binary())
    bad = binary()
    bad[0, 0] = float("nan")
    before = copy.deepcopy(vae.state_dict())
    state = svi.optim.get_state()["params"]
    with poutine.block(), pyro.validation_enabled(False), pytest.warns(UserWarning, match="not applied|NaN"):
        svi.step(bad)
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    for name, values in svi.optim.get_state()["params"].items():
        assert all(torch.equal(v, state[name][k]) for k, v in values.items())


def test_two_halves_make_a_step() -> None:
    vae = SmallVAE()
    other = copy.deepcopy(vae)
    losses = train(graph_svi(vae.model, vae.guide), [binary()] * 5)
    pyro.clear_param_store()
    svi = graph_svi(other.model, other.guide)
    pyro.set_rng_seed(5)
    for want in losses:
        loss, params = svi.backward(binary())
        assert loss.item() == want
        svi.optim(params)
    assert all(torch.equal(p, q) for p, q in zip(vae.parameters(), other.parameters(), strict=True))


def test_handlers_around_a_step_are_heeded() -> None:
    vae = SmallVAE()
    svi = graph_svi(vae.model, vae.guide)
    for _ in range(3):
        svi.evaluate_loss(binary())
    pyro.set_rng_seed(1)
    plain = svi.evaluate_loss(binary())
    pyro.set_rng_seed(1)
    with poutine.scale(scale=2.0):
        assert svi.evaluate_loss(binary()) == pytest.approx(2 * plain)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_with_several_inputs_compiles_at_the_first_try(precision: Any, caplog: pytest.LogCaptureFixture) -> None:
    vae = SmallVAE()
    svi = CompiledSVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO(), precision=precision, compile_after=1)
    with caplog.at_level(logging.DEBUG, logger="pyro_vae.infer"):
        train(svi, [binary()] * 3, beta=torch.tensor(0.5))
    ours = [record.levelname for record in caplog.records if record.name.startswith("pyro_vae")]
    assert ours == ["INFO"]  # what was captured, and no failure


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_was_compiled_before_is_not_compiled_again(
    precision: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x = (torch.rand(100, 90) < 0.3).float()  # large enough for oneDNN's products
    found, losses = [], []
    for _ in range(2):
        counters.clear()
        pyro.clear_param_store()
        torch.manual_seed(0)
        vae = pv.VAE(
            pv.StandardNormalPrior(3),
            pv.BernoulliLikelihood(pv.MLP(3, 90, hidden_dims=(128, 128))),
            pv.DiagonalNormalPosterior(pv.MLP(90, 6, hidden_dims=(128, 128))),
        )
        svi = CompiledSVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO(), precision=precision, compile_after=1)
        losses.append(train(svi, [x] * 4))
        found.append((counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"]))
    assert found == [(1, 0), (0, 1)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_without_a_compiler_the_graph_runs_uncompiled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor
    from torch._inductor import compile_fx

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    monkeypatch.setattr(compile_fx, "compile_fx_inner", broken)
    monkeypatch.setattr("pyro_vae.infer.compiled.backend._said", set())
    vae = SmallVAE()
    svi = CompiledSVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO(), compile_after=1)
    with pytest.warns(UserWarning, match="runs uncompiled") as seen:
        train(svi, [binary(n) for n in (5, 5, 5, 4, 4, 4)])
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["check_steps", "compile_after", "max_captures"])
@pytest.mark.parametrize("value", [None, -1, 1.5, True, "3"])
def test_counts_that_are_none_are_refused(name: str, value: Any) -> None:
    vae = small_vae()
    with pytest.raises(ValueError, match=rf"{name}: expected an integer of at least 0, got {value!r}"):
        pv.CompiledSVI(vae.model, vae.guide, pv.Adam({}), Trace_ELBO(), **{name: value})
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({}), Trace_ELBO(), **{name: np.int64(2)})
    assert math.isfinite(svi.step(torch.ones(3, 6)))


def test_the_class_of_an_objective_is_refused_at_once() -> None:
    vae = SmallVAE()
    with pytest.raises(TypeError, match=r"loss: expected an objective, got the class Trace_ELBO. Give Trace_ELBO\(\)"):
        CompiledSVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO)
