"""Validation: the bound itself, whatever the schedules say, and nothing is moved by the look."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from tiny import images, make, parameters_of, same
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.train import fit

COMPILED = functools.partial(pv.CompiledSVI, compile="graph")


def test_validation_moves_no_weight_and_no_generator() -> None:
    class Noisy:
        def __iter__(self) -> Any:
            random.random(), np.random.rand(), torch.rand(3)
            return iter(images().split(20))

    outcomes = []
    for validation in (None, Noisy()):
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        m = make(seed=3, batch_norm=True)
        fit(m.svi, images().split(16), epochs=2, validation=validation, progress=False)
        outcomes.append((parameters_of(m.vae), torch.rand(1), random.random(), np.random.rand()))
    assert same(outcomes[0][0], outcomes[1][0])  # batch normalisation's running means included
    assert outcomes[0][1:] == outcomes[1][1:]


def test_validation_is_in_eval_mode_and_gives_the_modes_back() -> None:
    m = make(batch_norm=True)
    dropout = nn.Dropout(0.5)
    m.vae.posterior.network.append(nn.Identity())
    m.vae.posterior.network.insert(0, dropout)
    seen = []
    dropout.register_forward_hook(lambda module, *_: seen.append(module.training))
    m.vae.eval()
    fit(m.svi, images().split(25), epochs=1, validation=images().split(50), progress=False)
    # The look at the first batch, two steps, a look at a batch of another shape, and its validation.
    assert seen == [False, True, True, False, False]
    assert m.vae.training
    assert dropout.training


def test_a_first_look_that_fails_gives_the_modes_back() -> None:
    m = make()
    hooks = len(torch.nn.modules.module._global_forward_pre_hooks)
    with pytest.raises(ValueError, match=r"expected shape \(\*, 6\)"):
        fit(m.svi, [images()[:, :5]], epochs=1, progress=False)
    assert all(module.training for module in m.vae.modules())
    assert len(torch.nn.modules.module._global_forward_pre_hooks) == hooks


def test_modules_that_plain_functions_close_over_are_in_eval_mode_too() -> None:
    encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2))
    decoder = nn.Linear(2, 6)

    def model(x: torch.Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    outcomes = []
    for validation in (None, images().split(25)):
        pyro.clear_param_store()
        torch.manual_seed(0)
        for module in (*encoder, decoder):
            module.reset_parameters()
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        fit(svi, images().split(25), epochs=2, validation=validation, progress=False)
        outcomes.append(parameters_of(encoder))
        assert encoder.training
    assert same(*outcomes)


def test_validation_has_the_same_noise_every_time() -> None:
    m = make(optim=pyro.optim.Adam({"lr": 0.0}))
    batches = pv.data.Batches(images(), batch_size=16, transform=lambda x, keys: (torch.rand(x.shape) < 0.5).float())
    history = fit(m.svi, images().split(16), epochs=3, validation=batches, progress=False)
    assert len(set(history["validation_elbo"])) == 1


@pytest.mark.parametrize("kind", [SVI, COMPILED], ids=["plain", "compiled"])
def test_the_beta_of_a_schedule_does_not_reach_validation(kind: Any, linear_gaussian: Any) -> None:
    # At this optimum every log-weight is log p(x), but only at beta = 1: at beta the bound is higher by (1 - beta) KL.
    vae, x, log_likelihood, kl, *_ = linear_gaussian
    svi = kind(vae.model, vae.guide, pv.Adam({"lr": 0.0}), Trace_ELBO())
    beta, batches = 0.2, x.split(100)
    history = fit(svi, batches, epochs=3, schedules={"beta": lambda t: beta}, validation=batches, progress=False)
    assert history["validation_elbo"] == pytest.approx([log_likelihood] * 3, abs=1e-4)
    assert history["train_elbo"] == pytest.approx([log_likelihood + (1 - beta) * kl] * 3, abs=0.3)
    assert kl > 1  # so that the two cannot be taken for each other


@pytest.mark.parametrize("kind", [SVI, COMPILED], ids=["plain", "compiled"])
def test_validation_leaves_every_scheduled_argument_at_its_default(kind: Any) -> None:
    x = torch.randn(40)

    def model(x: Tensor, temperature: Any = 1.0, shift: Any = 0.0) -> None:
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + shift, temperature), obs=x)

    svi = kind(model, lambda x, temperature=1.0, shift=0.0: None, pv.Adam({"lr": 0.0}), Trace_ELBO())
    schedules = {"temperature": lambda t: 2 + t, "shift": lambda t: -t}
    history = fit(svi, x.split(10), epochs=2, schedules=schedules, validation=x.split(20), progress=False)
    expected = dist.Normal(0.5, 1.0).log_prob(x).mean().item()
    assert history["validation_elbo"] == pytest.approx([expected] * 2, rel=1e-5)
    steps = [(k + 1) / 4 for k in range(8)]  # four batches an epoch
    terms = [dist.Normal(0.5 - t, 2 + t).log_prob(x.split(10)[k % 4]).mean().item() for k, t in enumerate(steps)]
    assert history["train_elbo"] == pytest.approx([sum(terms[:4]) / 4, sum(terms[4:]) / 4], rel=1e-5)


def test_a_validation_batch_may_outnumber_size() -> None:
    x = torch.randn(20)

    def model(x: Tensor, size: int) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", size, subsample=x):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    svi = SVI(model, lambda x, size: None, pyro.optim.Adam({"lr": 0.0}), Trace_ELBO())
    history = fit(svi, list(x.split(5)), epochs=1, size=10, validation=[x], progress=False)
    expected = dist.Normal(0.0, 1.0).log_prob(x).mean().item()
    assert history["validation_elbo"][0] == pytest.approx(expected, rel=1e-5)
