"""NumPyro's way: an epoch is one jitted ``lax`` loop that shuffles and binarises images held on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array, lax, random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.svi import SVIState

from contest.problem import LEARNING_RATE, PIXELS, EpochProblem, Run
from contest.recipes.mnist import images


def network(name: str, x: Array, hidden: int, width: int) -> Array:
    """One hidden layer of softplus units."""
    return _linear(f"{name}.1", jax.nn.softplus(_linear(f"{name}.0", x, hidden)), width)


def _linear(name: str, x: Array, width: int) -> Array:
    bound = x.shape[-1] ** -0.5
    weight = numpyro.param(
        f"{name}.weight", lambda key: random.uniform(key, (x.shape[-1], width), minval=-bound, maxval=bound)
    )
    return x @ weight + numpyro.param(f"{name}.bias", jnp.zeros(width))


def numpyro_epoch(problem: EpochProblem) -> Run:
    """The loop has batches of one size only: a last, smaller one is left out."""
    jax.config.update("jax_platforms", "cpu")
    hidden, latent, batch_size = problem.hidden_dim, problem.latent_dim, problem.batch_size

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), latent)), 1.0).to_event(1))
            logits = network("decoder", z, hidden, PIXELS)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(network("encoder", x, hidden, 2 * latent), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    data = jnp.asarray(images(problem).numpy())
    steps = len(data) // batch_size
    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO())
    state = svi.init(random.PRNGKey(0), jnp.zeros((batch_size, PIXELS)))

    @jax.jit
    def epoch(state: SVIState, data: Array, key: Array) -> tuple[SVIState, Array]:
        order = random.permutation(key, len(data))

        def body(i: Array, carry: tuple[SVIState, Array]) -> tuple[SVIState, Array]:
            state, total = carry
            rows = lax.dynamic_slice_in_dim(order, i * batch_size, batch_size)
            grey = data[rows].astype(jnp.float32) / 255
            x = random.bernoulli(random.fold_in(key, i), grey).astype(jnp.float32)
            state, loss = svi.update(state, x)
            return state, total + loss

        return lax.fori_loop(0, steps, body, (state, jnp.zeros(())))

    def run(first: int, count: int) -> float:
        nonlocal state
        total = 0.0
        for number in range(first, first + count):
            state, loss = epoch(state, data, random.PRNGKey(number))
            total += float(loss)
        return total / (count * steps * batch_size)

    return run
