"""Small Pyro programs, one for each thing that a captured step must get right."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.infer import TraceIWAE_ELBO, TraceSTL_ELBO


class Program(NamedTuple):
    """A model and a guide made anew from a seed, an objective, and arguments."""

    make: Callable[[], tuple[Any, Any]]
    loss: Callable[[], Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}  # noqa: RUF012 (never written)


class SmallVAE(nn.Module):
    """z ~ N(0, 1), x ~ Bernoulli(decoder(z)); with the parts that need care as arguments."""

    def __init__(self, encoder: nn.Module | None = None, decoder: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder if encoder is not None else nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 4))
        self.decoder = decoder if decoder is not None else nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 6))

    def model(self, x: Tensor, size: int | None = None, beta: Any = 1.0) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", size or len(x), subsample=x, dim=-1):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor, size: int | None = None, beta: Any = 1.0) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", size or len(x), subsample=x, dim=-1), poutine.scale(scale=beta):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + 1e-3).to_event(1))


def small_vae(**parts: Any) -> tuple[Any, Any]:
    vae = SmallVAE(**parts)
    return vae.model, vae.guide


def normed() -> tuple[Any, Any]:
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.3), nn.Linear(8, 4))
    return small_vae(encoder=encoder)


def frozen() -> tuple[Any, Any]:
    vae = SmallVAE()
    vae.encoder[0].weight.requires_grad_(False)
    return vae.model, vae.guide


def double() -> tuple[Any, Any]:
    vae = SmallVAE().double()
    return vae.model, vae.guide


def constrained() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        rate = pyro.param("rate", torch.tensor(2.0), constraint=constraints.positive)
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Gamma(1.0 + weights[0], rate), obs=x)

    def guide(x: Tensor) -> None:
        concentration = pyro.param("concentration", torch.full((3,), 2.0), constraint=constraints.positive)
        pyro.sample("weights", dist.Dirichlet(concentration))

    return model, guide


def score_function() -> tuple[Any, Any]:
    """A Bernoulli latent per datum that is sampled, so that the gradient is a score-function estimate."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(torch.where(z > 0, loc[1], loc[0]), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        logit = pyro.param("logit", lambda: torch.randn(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    return model, guide


def enumerated() -> tuple[Any, Any]:
    @config_enumerate
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    return model, lambda x: None


def enumerated_in_guide() -> tuple[Any, Any]:
    model, guide = score_function()
    return model, config_enumerate(guide, default="parallel")


def nested_arguments() -> tuple[Any, Any]:
    """Tuples, dictionaries and None among the arguments."""

    def model(data: dict[str, Any], rest: tuple[Any, ...], nothing: None = None, *, flip: bool = False) -> None:
        x, (shift, scale) = data["x"], rest
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(-loc if flip else loc, scale), obs=x - shift)

    return model, lambda *args, **kwargs: None


def subsampled_by_pyro() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=4) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])

    def guide(x: Tensor) -> None:
        mean = pyro.param("mean", torch.tensor(0.0))
        pyro.sample("loc", dist.Normal(mean, pyro.param("sd", torch.tensor(0.3), constraint=constraints.positive)))
        with pyro.plate("data", len(x), subsample_size=4):
            pass

    return model, guide


def _regression(x: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    sd = pyro.sample("sd", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x[:, :2] @ slope, sd), obs=x[:, 2])


def binary(n: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(n, 6, generator=torch.Generator().manual_seed(n)) > 0.5).to(dtype)


def reals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def squared_error(model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A plain function as a loss, which ``pyro.infer.SVI`` takes too."""
    trace = poutine.trace(model).get_trace(*args, **kwargs)
    return -trace.log_prob_sum()


PROGRAMS: dict[str, Program] = {
    "trace": Program(small_vae, Trace_ELBO, (binary(),)),
    "mean field": Program(small_vae, TraceMeanField_ELBO, (binary(),)),
    "trace graph": Program(small_vae, TraceGraph_ELBO, (binary(),)),
    "importance weighted": Program(small_vae, lambda: TraceIWAE_ELBO(4), (binary(),)),
    "sticking the landing": Program(small_vae, TraceSTL_ELBO, (binary(),)),
    "two particles": Program(small_vae, lambda: Trace_ELBO(num_particles=2), (binary(),)),
    "vectorised particles": Program(
        small_vae, lambda: Trace_ELBO(num_particles=3, vectorize_particles=True), (binary(),)
    ),
    "a beta and a subsample": Program(small_vae, Trace_ELBO, (binary(),), {"size": 50, "beta": torch.tensor(0.5)}),
    "batch norm and dropout": Program(normed, Trace_ELBO, (binary(),)),
    "frozen": Program(frozen, Trace_ELBO, (binary(),)),
    "float64": Program(double, Trace_ELBO, (binary(dtype=torch.float64),)),
    "constrained": Program(constrained, Trace_ELBO, (reals(5).exp(),)),
    "score function": Program(score_function, Trace_ELBO, (reals(5),)),
    "score function, trace graph": Program(score_function, TraceGraph_ELBO, (reals(5),)),
    "enumerated": Program(enumerated, lambda: TraceEnum_ELBO(max_plate_nesting=1), (reals(5),)),
    "enumerated in the guide": Program(enumerated_in_guide, lambda: TraceEnum_ELBO(max_plate_nesting=1), (reals(5),)),
    "nested arguments": Program(
        nested_arguments,
        Trace_ELBO,
        ({"x": reals(4)}, (torch.tensor(0.5), 2.0), None),
        {"flip": True},
    ),
    "subsampled by Pyro": Program(subsampled_by_pyro, Trace_ELBO, (reals(9),)),
    "automatic guide": Program(lambda: (_regression, AutoNormal(_regression)), Trace_ELBO, (reals(6, 3),)),
    "automatic joint guide": Program(
        lambda: (_regression, AutoMultivariateNormal(_regression)), Trace_ELBO, (reals(6, 3),)
    ),
    "a function as loss": Program(nested_arguments, lambda: squared_error, ({"x": reals(4)}, (0.0, 1.0))),
}


def eager_svi(model: Any, guide: Any, optim: Any, loss: Any) -> SVI:
    return SVI(model, guide, optim, loss)
