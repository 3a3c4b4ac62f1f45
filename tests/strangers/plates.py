"""Plates of every kind, Markov chains, and Pyro's handlers."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate, infer_discrete
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam, TransformReparam
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

from .runner import CAPTURED, LEFT, STEPS, Setup, bits, call, fresh, program, ragged, reals


def normal_guide(*args: Any, **kwargs: Any) -> None:
    """q(z) = N(loc, scale) for one latent variable."""
    scale = pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), scale))


@program(CAPTURED, compiled=True)
def nested_plates() -> Setup:
    """Two plates, one inside the other"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", x.shape[1], dim=-1):
            shift = pyro.param("shift", torch.zeros(3))
            with pyro.plate("rows", x.shape[0], dim=-2):
                pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    return Setup(model, normal_guide, fresh(4, 3))


@program(CAPTURED)
def crossed_plates_with_subsamples() -> Setup:
    """Two crossed plates, both subsampled by Pyro"""

    def plates() -> tuple[pyro.plate, pyro.plate]:
        return pyro.plate("rows", 6, subsample_size=3, dim=-2), pyro.plate("columns", 5, subsample_size=2, dim=-1)

    def model(x: Tensor) -> None:
        rows, columns = plates()
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with rows as i, columns as j:
            pyro.sample("x", dist.Normal(z, 1.0), obs=Vindex(x)[i[:, None], j])

    def guide(x: Tensor) -> None:
        normal_guide()
        plates()

    return Setup(model, guide, fresh(6, 5))


@program(CAPTURED)
def two_plates_side_by_side() -> Setup:
    """Two plates of different sizes, two arguments"""

    def model(x: Tensor, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("xs", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        with pyro.plate("ys", len(y)):
            pyro.sample("y", dist.Normal(2 * z, 1.0), obs=y)

    return Setup(model, normal_guide, [call(reals(3 + i % 2, seed=i), reals(7, seed=i)) for i in range(STEPS)])


@program(CAPTURED)
def a_batch_of_a_larger_set() -> Setup:
    """A mini-batch that is scaled to the size of the whole set"""

    def model(x: Tensor, size: int) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size, subsample=x):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Setup(model, normal_guide, [call(args[0], size=50) for args, _ in ragged(6)])


@program(CAPTURED)
def a_subsample_by_pyro() -> Setup:
    """A plate that draws its own subsample"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=4) as index:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    return Setup(model, normal_guide, fresh(9))


@program(CAPTURED)
def a_plate_as_a_loop() -> Setup:
    """`for i in pyro.plate(...)` over all data"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    return Setup(model, normal_guide, ragged(5))


@program(CAPTURED)
def a_plate_as_a_loop_with_local_variables() -> Setup:
    """`for i in pyro.plate(...)` in model and guide, by `TraceGraph_ELBO`"""

    def model(x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Bernoulli(0.4))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(4))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", dist.Bernoulli(logits=logits[i]))

    return Setup(model, guide, fresh(4), TraceGraph_ELBO())


@program(CAPTURED)
def plates_as_nested_loops() -> Setup:
    """A loop over one plate inside a loop over another, the inner plate made once"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        rows, columns = pyro.plate("rows", x.shape[0]), pyro.plate("columns", x.shape[1])
        for i in rows:
            for j in columns:
                pyro.sample(f"x_{i}_{j}", dist.Normal(z, 1.0), obs=x[i, j])

    return Setup(model, normal_guide, fresh(2, 3))


@program(LEFT, says="for i in pyro.plate")
def a_subsampled_plate_as_a_loop() -> Setup:
    """`for i in pyro.plate(...)` over a random subsample"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(x), subsample_size=3):
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    return Setup(model, normal_guide, fresh(6))


@program(CAPTURED)
def a_markov_chain() -> Setup:
    """`pyro.markov` over continuous states"""

    def model(x: Tensor) -> None:
        state = torch.zeros(())
        drift = pyro.param("drift", torch.tensor(0.9))
        for t in pyro.markov(range(len(x))):
            state = pyro.sample(f"z_{t}", dist.Normal(drift * state, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(state, 0.5), obs=x[t])

    def guide(x: Tensor) -> None:
        locs = pyro.param("locs", torch.zeros(6))
        for t in pyro.markov(range(len(x))):
            pyro.sample(f"z_{t}", dist.Normal(locs[t], 0.4))

    return Setup(model, guide, fresh(6))


@program(CAPTURED, compiled=True)
def a_hidden_markov_model() -> Setup:
    """A hidden Markov model, states summed out"""

    @config_enumerate
    def model(x: Tensor) -> None:
        transition = pyro.param("transition", torch.ones(3, 3) / 3, constraint=constraints.simplex)
        locs = pyro.param("locs", torch.tensor([-1.0, 0.0, 1.0]))
        state: Any = 0
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                state = pyro.sample(f"k_{t}", dist.Categorical(transition[state]))
                pyro.sample(f"x_{t}", dist.Normal(locs[state], 1.0), obs=x[:, t])

    return Setup(model, lambda x: None, fresh(4, 5), TraceEnum_ELBO(max_plate_nesting=1))


@program(CAPTURED)
def a_discrete_hmm_distribution() -> Setup:
    """`dist.DiscreteHMM`"""

    def model(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(2, 2))
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("sequences", len(x)):
            pyro.sample("x", dist.DiscreteHMM(torch.zeros(2), logits, dist.Normal(locs, 1.0)), obs=x)

    return Setup(model, lambda x: None, fresh(3, 6))


@program(CAPTURED)
def a_gaussian_hmm_distribution() -> Setup:
    """`dist.GaussianHMM`"""

    def model(x: Tensor) -> None:
        noise = pyro.param("noise", torch.tensor(0.5), constraint=constraints.positive)
        start = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        step = dist.Normal(torch.zeros(2), noise.expand(2)).to_event(1)
        observe = dist.Normal(torch.zeros(1), torch.ones(1)).to_event(1)
        hmm = dist.GaussianHMM(start, torch.eye(2), step, torch.ones(2, 1), observe, duration=x.shape[-2])
        pyro.sample("x", hmm, obs=x)

    return Setup(model, lambda x: None, fresh(6, 1))


@program(CAPTURED)
def masked_sequences() -> Setup:
    """Sequences of different lengths, `poutine.mask`"""

    def model(x: Tensor, lengths: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        observed = torch.arange(x.shape[1]) < lengths[:, None]
        steps, sequences = pyro.plate("steps", x.shape[1], dim=-1), pyro.plate("sequences", len(x), dim=-2)
        with steps, sequences, poutine.mask(mask=observed):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    batches = [call(reals(4, 5, seed=i), torch.tensor([1, 5, 2, 3]).roll(i)) for i in range(STEPS)]
    return Setup(model, normal_guide, batches)


@program(CAPTURED)
def masked_by_the_distribution() -> Setup:
    """`Distribution.mask` and `obs_mask`"""

    def model(x: Tensor, seen: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).mask(seen), obs=x)

    return Setup(model, normal_guide, [call(reals(5, seed=i), reals(5, seed=i + 1) > 0) for i in range(STEPS)])


@program(CAPTURED)
def partly_observed() -> Setup:
    """Missing data, `obs_mask=`"""

    def model(x: Tensor, seen: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)

    def guide(x: Tensor, seen: Tensor) -> None:
        normal_guide()
        with pyro.plate("data", len(x)):
            pyro.sample("x_unobserved", dist.Normal(pyro.param("missing", torch.tensor(0.0)), 1.0))

    return Setup(model, guide, [call(reals(5, seed=i), reals(5, seed=i + 1) > 0) for i in range(STEPS)])


@program(CAPTURED)
def scaled_and_blocked() -> Setup:
    """`poutine.scale` and `poutine.block`"""

    def inner(x: Tensor) -> Tensor:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("hidden", dist.Normal(z, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        return z

    model = poutine.scale(poutine.block(inner, hide=["hidden"]), scale=0.5)
    return Setup(model, normal_guide, fresh(5))


@program(CAPTURED)
def conditioned() -> Setup:
    """`poutine.condition` on data that were there before"""

    def prior() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(z, 1.0))

    return Setup(poutine.condition(prior, data={"x": reals(4)}), normal_guide, [call()] * STEPS)


@program(CAPTURED)
def conditioned_within() -> Setup:
    """`poutine.condition` on the arguments, inside the model"""

    def prior(n: int) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", n):
            pyro.sample("x", dist.Normal(z, 1.0))

    def model(x: Tensor) -> None:
        poutine.condition(prior, data={"x": x})(len(x))

    return Setup(model, normal_guide, ragged(5))


@program(CAPTURED)
def intervened() -> Setup:
    """`poutine.do` and `poutine.uncondition`"""

    def story(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        treated = pyro.sample("treated", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z * treated, 1.0), obs=x)

    return Setup(poutine.do(story, data={"treated": torch.tensor(1.0)}), normal_guide, fresh(5))


@program(CAPTURED)
def factors() -> Setup:
    """`pyro.factor` in model and guide"""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -(z**2))
        with pyro.plate("data", len(x)):
            pyro.factor("fit", -((x - z) ** 2))

    def guide(x: Tensor) -> None:
        normal_guide()
        pyro.factor("regularizer", pyro.param("loc").abs(), has_rsample=False)

    return Setup(model, guide, fresh(5))


@program(CAPTURED)
def infer_config() -> Setup:
    """`poutine.infer_config`, which asks for enumeration site by site"""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    def configure(site: dict[str, Any]) -> dict[str, Any]:
        return {"enumerate": "parallel"} if site["name"] == "k" else {}

    enumerated = poutine.infer_config(model, config_fn=configure)
    return Setup(enumerated, lambda x: None, fresh(5), TraceEnum_ELBO(max_plate_nesting=1))


@program(CAPTURED)
def reparameterized() -> Setup:
    """`LocScaleReparam` and `TransformReparam`"""

    def centered(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        rate = pyro.sample("rate", dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.ExpTransform()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, rate), obs=x)

    model = poutine.reparam(centered, config={"z": LocScaleReparam(), "rate": TransformReparam()})
    return Setup(model, AutoNormal(model), fresh(5))


@program(CAPTURED)
def lifted_parameters() -> Setup:
    """`poutine.lift`: a prior over a `pyro.param`"""

    def story(x: Tensor) -> None:
        z = pyro.param("z", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Setup(poutine.lift(story, prior=dist.Normal(0.0, 1.0)), normal_guide, fresh(5))


@program(CAPTURED)
def scoped_names() -> Setup:
    """Names in a scope"""

    @scope(prefix="part")
    def part(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Setup(part, scope(prefix="part")(normal_guide), fresh(5))


@program(CAPTURED)
def deterministic_sites_and_subsamples() -> Setup:
    """`pyro.deterministic`, `pyro.subsample` and `event_dim`"""

    def model(x: Tensor, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=3):
            batch = pyro.subsample(x, event_dim=1)
            mean = pyro.deterministic("mean", z * batch.sum(-1))
            pyro.sample("y", dist.Normal(mean, 1.0), obs=pyro.subsample(y, event_dim=0))

    return Setup(model, normal_guide, [call(reals(6, 2, seed=i), bits(6, seed=i)) for i in range(STEPS)])


@program(LEFT, says="boolean index")
def a_mixture_of_same_family() -> Setup:
    """`MixtureSameFamily`, `LKJCholesky`, `Dirichlet`"""

    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        factor = pyro.sample("factor", dist.LKJCholesky(2, 1.5))
        locs = pyro.param("locs", reals(2, 2))
        parts = dist.MultivariateNormal(locs, scale_tril=factor)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)

    return Setup(model, AutoNormal(model), fresh(6, 2))


@program(CAPTURED)
def infer_discrete_inside() -> Setup:
    """A model whose discrete sites are drawn by `infer_discrete`, in evaluation only"""

    @config_enumerate
    def mixture(x: Tensor) -> Tensor:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)
        return k

    assigned: list[Tensor] = []

    def look(svi: Any, i: int) -> None:
        if i % 7 == 6:
            assigned.append(infer_discrete(mixture, first_available_dim=-2)(reals(5)))

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    return Setup(mixture, lambda x: None, fresh(5), elbo, before_step=look)
