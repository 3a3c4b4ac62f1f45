"""The weight beta of the latent terms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

import pyro_vae as pv


def scale_of_z(beta):
    def model():
        with pv.latent_scale(beta):
            pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0))

    trace = poutine.trace(model).get_trace()
    assert trace.nodes["x"]["scale"] == 1.0
    return trace.nodes["z"]["scale"]


@pytest.mark.parametrize("beta", [1, 0.5, np.float32(0.5), np.int64(2), torch.tensor(0.5)])
def test_it_scales_the_sites_inside_it(beta):
    assert float(scale_of_z(beta)) == float(beta)
    assert type(scale_of_z(beta)) is (torch.Tensor if isinstance(beta, torch.Tensor) else float)


def test_what_is_no_positive_number_is_refused(make_vae, binary_data):
    vae = make_vae()
    for beta in (0, -1.0, math.nan, math.inf, None, "1", True):
        with pytest.raises(
            ValueError, match=rf"beta: expected a finite number above 0, got {beta!r}.*start .* at 1e-3"
        ):
            pv.latent_scale(beta)
        for function in (vae.model, vae.guide):
            with pytest.raises(ValueError, match=rf"beta: expected a finite number above 0, got {beta!r}"):
                function(binary_data, beta=beta)
    with pytest.raises(ValueError, match=r"beta: expected a number or a 0-dim tensor, got shape \(4,\)"):
        vae.model(torch.zeros(4, 6), beta=torch.ones(4))


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan])
def test_a_tensor_that_is_not_above_zero_stops_the_step(wrong, make_vae, binary_data):
    """Pyro's validation refuses it; a captured graph, in which validation is off, must not train on it."""
    vae, beta = make_vae(), torch.tensor(wrong)
    with pytest.raises(
        ValueError, match=f"beta: expected a number above 0, got {wrong}. Pyro cannot scale by 0; start"
    ):
        SVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO()).step(binary_data, beta=beta)
    options = {"compile": "graph", "check_steps": 0}
    svi = pv.CompiledSVI(vae.model, vae.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), **options)
    for _ in range(3):
        svi.step(binary_data, beta=torch.tensor(0.5))
    assert svi.captures == 1
    before = copy.deepcopy(vae.state_dict())
    with pytest.warns(UserWarning, match=r"not finite .*the step was not applied"):
        assert math.isnan(svi.step(binary_data, beta=beta))
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert math.isfinite(svi.step(binary_data, beta=torch.tensor(1.0)))
    assert svi.captures == 1
    assert any(not torch.equal(value, before[name]) for name, value in vae.state_dict().items())
