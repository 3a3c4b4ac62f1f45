"""A captured step is updated as torch does it, whatever the options; where it is skipped, the schedule alone moves."""

import copy
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR

from pyro_vae.infer import CompiledSVI, FusedOptim
from pyro_vae.infer.compiled import backend
from tests.helpers.programs import SmallVAE, binary

OPTIONS = {
    "plain": (torch.optim.Adam, {}, {}),
    "weight decay": (torch.optim.Adam, {"weight_decay": 0.1}, {}),
    "decoupled weight decay": (torch.optim.AdamW, {"weight_decay": 0.1}, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}, {}),
    "maximize": (torch.optim.AdamW, {"maximize": True}, {}),
    "other numbers": (torch.optim.Adam, {"betas": (0.5, 0.9), "eps": 1e-3}, {}),
    "clipped": (torch.optim.Adam, {}, {"clip_norm": 0.5}),
    "not fused": (torch.optim.Adam, {"foreach": True}, {}),
    "no Adam": (torch.optim.SGD, {"momentum": 0.9}, {"clip_norm": 0.5}),
}


def optimiser(name: str) -> FusedOptim:
    torch_class, options, ours = OPTIONS[name]
    return FusedOptim(torch_class, {"lr": 0.01, **options}, scheduler=lambda o: ExponentialLR(o, 0.9), **ours)


def train(svi: Any, steps: int) -> list[float]:
    pyro.set_rng_seed(5)
    return [svi.step(binary()) for _ in range(steps)]


@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_torchs(name: str) -> None:
    pyro.set_rng_seed(0)
    vae = SmallVAE()
    other = copy.deepcopy(vae)
    pyro.clear_param_store()
    plain = optimiser(name)
    losses = train(SVI(vae.model, vae.guide, plain, Trace_ELBO()), 12)
    pyro.clear_param_store()
    svi = CompiledSVI(other.model, other.guide, optimiser(name), Trace_ELBO(), compile="graph")
    assert train(svi, 12) == pytest.approx(losses, rel=1e-5)  # clipping divides where torch multiplies
    assert svi.captures == 1
    for p, q in zip(vae.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-7)
    for key, state in plain.get_state()["params"].items():
        for entry, value in svi.optim.get_state()["params"][key].items():
            assert torch.allclose(value, state[entry], rtol=1e-4, atol=1e-9), (key, entry)


@pytest.mark.parametrize("name", ["plain", "not fused"])
def test_gradients_that_the_compiler_stores_in_another_order_are_put_in_order(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ways(compiler: Any, graph: Any, examples: Any, on_cpu: bool) -> Any:
        def run(*tensors: Tensor) -> list[Tensor]:
            return [out.mT.contiguous().mT if out.dim() == 2 else out for out in graph(*tensors)]

        return [lambda: run]

    monkeypatch.setattr(backend, "_ways", ways)
    pyro.set_rng_seed(0)
    vae = SmallVAE()
    other = copy.deepcopy(vae)
    pyro.clear_param_store()
    losses = train(SVI(vae.model, vae.guide, optimiser(name), Trace_ELBO()), 12)
    pyro.clear_param_store()
    svi = CompiledSVI(other.model, other.guide, optimiser(name), Trace_ELBO(), compile_after=1, check_steps=0)
    assert train(svi, 12) == pytest.approx(losses, rel=1e-5)
    for p, q in zip(vae.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("compile", [False, "graph"])
@pytest.mark.parametrize("name", ["plain", "no Adam"])
def test_the_schedule_counts_steps_that_are_skipped_too(name: str, compile: Any) -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    vae = SmallVAE()
    svi = CompiledSVI(vae.model, vae.guide, optimiser(name), Trace_ELBO(), compile=compile, compile_after=1)
    train(svi, 4)
    before = copy.deepcopy(vae.state_dict())
    bad = binary()
    bad[0, 0] = float("nan")
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="not applied|NaN"):
        svi.step(bad)
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())
    assert svi.optim.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.9**5)
    train(svi, 1)
    assert not torch.equal(before["encoder.0.weight"], vae.encoder[0].weight)


def test_options_set_by_hand_hold_from_the_next_step_on() -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    vae = SmallVAE()
    svi = CompiledSVI(vae.model, vae.guide, optimiser("plain"), Trace_ELBO(), compile="graph")
    train(svi, 4)
    svi.optim.optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)
    before = copy.deepcopy(vae.state_dict())
    train(svi, 1)
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())
    assert svi.captures == 1
