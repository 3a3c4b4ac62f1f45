"""Captured loss and gradients are Pyro's own, to the last bit."""

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI

from pyro_vae.infer import Adam, CompiledSVI
from tests.helpers.programs import PROGRAMS


def gradients(name: str, svi_class: Any, calls: int, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Loss and gradients of one program at its ``calls``-th call; no step is taken."""
    program = PROGRAMS[name]
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    model, guide = program.make()
    svi = svi_class(model, guide, Adam({"lr": 0.1}), program.loss(), **options)
    for call in range(calls):
        pyro.set_rng_seed(10 + call)
        if svi_class is SVI:
            loss = svi.loss_and_grads(svi.model, svi.guide, *program.args, **program.kwargs)
            loss = loss.detach() if isinstance(loss, torch.Tensor) else loss
            found = {k: p.grad for k, p in pyro.get_param_store().named_parameters()}
            for p in dict(pyro.get_param_store().named_parameters()).values():
                p.grad = None
        else:
            loss, _ = svi.backward(*program.args, **program.kwargs)
            found = {k: p.grad for k, p in pyro.get_param_store().named_parameters()}
    if svi_class is CompiledSVI:
        assert svi.captures == (0 if calls == 1 else 1)
    return float(loss), found


QUICK = ("trace", "trace graph", "importance weighted", "batch norm and dropout", "enumerated", "automatic guide")


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store:UserWarning")
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PROGRAMS])
def test_captured_gradients_are_pyros_to_the_last_bit(name: str) -> None:
    for calls in (1, 2, 3):
        want_loss, want = gradients(name, SVI, calls)
        loss, got = gradients(name, CompiledSVI, calls, compile="graph")
        assert loss == want_loss
        assert got.keys() == want.keys()
        assert any(g is not None for g in want.values())
        for key, gradient in want.items():
            if gradient is None:
                assert got[key] is None
            else:
                assert torch.equal(got[key], gradient), key
