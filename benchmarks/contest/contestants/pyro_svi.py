"""Pyro as its users write it: a model, a guide, and ``SVI``."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from torch import Tensor

from contest.problem import LEARNING_RATE, Problem, Run
from contest.torch_parts import batches, loop, networks


def story(problem: Problem) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """Model and guide of a Bernoulli VAE, in a fresh parameter store."""
    pyro.clear_param_store()
    encoder, decoder = networks(problem)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            loc = x.new_zeros(len(x), problem.latent_dim)
            z = pyro.sample("z", dist.Normal(loc, loc.new_ones(loc.shape)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def pyro_svi(problem: Problem) -> Run:
    """Plain SVI with Pyro's defaults: validation on, Pyro's Adam."""
    pyro.enable_validation(True)
    model, guide = story(problem)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO())
    return loop(svi.step, batches(problem))


def pyro_svi_unvalidated(problem: Problem) -> Run:
    """The same with validation off."""
    pyro.enable_validation(False)
    model, guide = story(problem)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO())
    return loop(svi.step, batches(problem))


def pyro_jit(problem: Problem) -> Run:
    """Pyro's own compiled objective, which rests on ``torch.jit.trace``; validation off, which it runs faster with."""
    pyro.enable_validation(False)
    model, guide = story(problem)
    elbo = JitTrace_ELBO(ignore_jit_warnings=True)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), elbo)
    return loop(svi.step, batches(problem))
