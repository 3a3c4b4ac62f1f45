"""pyro_vae as its README has it: batches from memory, binarised anew each epoch, ``CompiledSVI`` and ``fit``."""

from __future__ import annotations

from typing import Literal

from pyro.infer import Trace_ELBO
from torch import nn

import pyro_vae as pv
from contest.problem import LEARNING_RATE, PIXELS, EpochProblem, Run
from contest.recipes.mnist import images
from pyro_vae.infer import Adam, CompiledSVI


def pyro_vae_fit(problem: EpochProblem) -> Run:
    """Products in float32."""
    return _fit(problem)


def pyro_vae_fit_bf16(problem: EpochProblem) -> Run:
    """Products in bfloat16."""
    return _fit(problem, precision="bf16")


def _fit(problem: EpochProblem, precision: Literal["float32", "bf16"] = "float32") -> Run:
    train = pv.data.Batches(images(problem), batch_size=problem.batch_size, shuffle=True, transform=pv.data.binarize)
    decoder = pv.MLP(problem.latent_dim, PIXELS, hidden_dims=(problem.hidden_dim,), activation=nn.Softplus)
    encoder = pv.MLP(PIXELS, 2 * problem.latent_dim, hidden_dims=(problem.hidden_dim,), activation=nn.Softplus)
    prior, likelihood = pv.StandardNormalPrior(problem.latent_dim), pv.BernoulliLikelihood(decoder)
    vae = pv.VAE(prior, likelihood, pv.DiagonalNormalPosterior(encoder))
    svi = CompiledSVI(
        vae.model, vae.guide, Adam({"lr": LEARNING_RATE}), Trace_ELBO(), precision=precision, compile_after=1
    )

    def run(first: int, count: int) -> float:
        history = pv.fit(svi, train, epochs=count, progress=False)
        return -sum(history["train_elbo"]) / count

    return run
