"""A learning rate that changes reaches the compiled step, whose update is part of its graph."""

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv


def losses(svi_class, make_vae, x):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    vae = make_vae()
    optim = pv.Adam({"lr": 0.05}, scheduler=lambda adam: OneCycleLR(adam, 0.05, total_steps=60))
    svi = svi_class(vae.model, vae.guide, optim, Trace_ELBO())
    pyro.set_rng_seed(1)
    return [svi.step(x) for _ in range(60)]


@pytest.mark.slow
def test_a_scheduler_is_followed(make_vae, binary_data):
    expected = losses(SVI, make_vae, binary_data)
    assert losses(pv.CompiledSVI, make_vae, binary_data) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_rate_set_by_hand_is_followed(make_vae, binary_data):
    vae = make_vae()
    optim = pv.Adam({"lr": 0.05})
    svi = pv.CompiledSVI(vae.model, vae.guide, optim, Trace_ELBO())
    for _ in range(4):
        svi.step(binary_data)
    optim.optimizer.param_groups[0]["lr"] = 0.0
    before = torch.cat([p.detach().flatten().clone() for p in vae.parameters()])
    svi.step(binary_data)
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in vae.parameters()]))
    optim.optimizer.param_groups[0]["lr"] = 0.05
    svi.step(binary_data)
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in vae.parameters()]))
    assert svi.captures == 1
