"""NumPyro as its users write it: the steps in one jitted ``lax`` loop over batches on the device."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array, lax, random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.svi import SVIState

from contest import problem as given
from contest.problem import LEARNING_RATE, Layers, Problem, Run, Unavailable


def numpyro_jit(problem: Problem) -> Run:
    """``svi.update`` inside ``lax.fori_loop``, under ``jit``, the state donated."""
    jax.config.update("jax_platforms", problem.device.split(":")[0])
    jax.config.update("jax_default_matmul_precision", "float32")  # as PyTorch's default: on a GPU jax's own is TF32
    try:
        jax.devices()
    except RuntimeError as error:
        raise Unavailable(f"jax has no {problem.device} here: {error}") from error
    encoder, decoder = given.initial_weights(problem)
    data = jnp.asarray(given.batches(problem))

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            loc = jnp.zeros((len(x), problem.latent_dim))
            z = numpyro.sample("z", dist.Normal(loc, jnp.ones_like(loc)).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=network("decoder", decoder, z)).to_event(1), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(network("encoder", encoder, x), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO())
    state = svi.init(random.PRNGKey(0), data[0])

    @partial(jax.jit, donate_argnums=0)
    def steps(state: SVIState, data: Array, first: Array, count: Array) -> tuple[SVIState, Array]:
        def body(i: Array, carry: tuple[SVIState, Array]) -> tuple[SVIState, Array]:
            state, total = carry
            state, loss = svi.update(state, data[i % len(data)])
            return state, total + loss

        return lax.fori_loop(first, first + count, body, (state, jnp.zeros(())))

    def run(first: int, count: int) -> float:
        nonlocal state
        state, total = jax.block_until_ready(steps(state, data, first, count))
        return float(total) / (count * problem.batch_size)

    return run


def network(name: str, layers: Layers, h: Array) -> Array:
    """Linear maps whose weights are ``numpyro.param`` sites, SiLU between them."""
    for i, (weight, bias) in enumerate(layers):
        h = h if i == 0 else jax.nn.silu(h)
        h = h @ numpyro.param(f"{name}.{i}.weight", jnp.asarray(weight.T)) + numpyro.param(
            f"{name}.{i}.bias", jnp.asarray(bias)
        )
    return h
