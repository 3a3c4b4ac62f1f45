"""What the tests run in two processes, and in one: each function trains, and returns what is to be compared.

As a program, with a directory and names: those scenarios in turn, the results of this process as ``DIR/<rank>.pt``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.infer import distributed

N, D = 41, 6  # batches of 8: the last one has a single datum, and so one of two processes none


class FixedNoise(nn.Module):
    """A VAE whose noise comes with its data; with ``size``, a global latent variable too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 4))
        self.decoder = nn.Linear(2, D)
        self.unused = nn.Parameter(torch.ones(3))

    def model(self, x: Tensor, noise: Tensor, *, size: int | None = None) -> None:
        pyro.module("fixed", self)
        strength = pyro.sample("strength", dist.Normal(0.0, 1.0)) if size is not None else torch.tensor(0.0)
        with pyro.plate("data", size, subsample=x) if size is not None else pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + strength).to_event(1), obs=x)

    def guide(self, x: Tensor, noise: Tensor, *, size: int | None = None) -> None:
        pyro.module("fixed", self)
        if size is not None:
            pyro.sample("strength", dist.Delta(pyro.param("strength_loc", torch.tensor(0.3))))
        with pyro.plate("data", size, subsample=x) if size is not None else pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            q = dist.Normal(loc, log_scale.exp()).to_event(1)
            z = loc + log_scale.exp() * noise
            pyro.sample("z", dist.Delta(z, log_density=q.log_prob(z), event_dim=1))


def data(n: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = (torch.rand(n, D, generator=generator) < torch.linspace(0.1, 0.9, D)).float()
    return x, torch.randn(n, 2, generator=generator)


def shared(batches: pv.data.Batches) -> pv.data.Batches:
    return batches.shard(distributed.rank(), distributed.world_size())


def fitted(
    make_svi: Callable[[Any], Any], *, size: int | None = None, epochs: int = 3, **options: Any
) -> dict[str, Any]:
    """Parameters and history of a fit with fixed noise, begun from other parameters in each process."""
    torch.manual_seed(distributed.rank())
    parts = FixedNoise()
    x, noise = data()
    train = shared(pv.data.Batches(x, noise, batch_size=8, shuffle=True, seed=5))
    validation = shared(pv.data.Batches(x[:11], noise[:11], batch_size=10))
    history = pv.fit(make_svi(parts), train, epochs=epochs, validation=validation, size=size, progress=False, **options)
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history]
    values = {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}
    return {"history": rows, "parameters": values}


def pyro_svi(optim: Any) -> Callable[[Any], Any]:
    return lambda parts: SVI(parts.model, parts.guide, optim, Trace_ELBO())


def with_pyro() -> Any:
    # Not Adam, which does not see a factor of the gradient.
    return fitted(pyro_svi(pyro.optim.SGD({"lr": 0.01, "momentum": 0.9})))


def with_one_optimiser() -> Any:
    return fitted(pyro_svi(pv.Adam({"lr": 0.02}, clip_norm=5.0)))


def with_size() -> Any:
    return fitted(pyro_svi(pv.FusedOptim(torch.optim.SGD, {"lr": 0.002})), size=N)


def with_compiled_graph() -> Any:
    return fitted(
        lambda parts: pv.CompiledSVI(parts.model, parts.guide, pv.Adam({"lr": 0.02}), Trace_ELBO(), compile="graph")
    )


def with_early_stopping() -> Any:
    stopping = pv.EarlyStopping(patience=1, min_delta=100.0)
    return fitted(pyro_svi(pv.Adam({"lr": 0.02})), epochs=9, callbacks=[stopping])


def sometimes_used() -> Any:
    """A parameter that one process's data need and the other's do not, in steps where none needs it, or all."""
    torch.manual_seed(0)

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        extra = pyro.param("extra", torch.zeros(()))
        with pyro.plate("data", len(x)):
            mean = loc + extra * (x > 1) if (x > 1).any() else loc
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    x = torch.tensor([0.0, 0.5, 0.1, 2.0, 3.0, 2.0, 0.2, 0.3, 3.0, 0.1])
    part = slice(None) if distributed.world_size() == 1 else slice(distributed.rank(), None, 2)
    pv.fit(svi, [batch[part] for batch in x.split(2)], epochs=4, progress=False)
    return {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}


def uneven() -> Any:
    """Three batches more in one process than in the other."""
    torch.manual_seed(0)
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 0.01}), Trace_ELBO())
    seen: list[int] = []

    def count(run: Any) -> None:
        seen.append(run.step)

    batches = data(70)[0].split(10)
    own = batches if distributed.world_size() == 1 else (batches[:5], batches[5:])[distributed.rank()]
    history = pv.fit(svi, own, epochs=2, progress=False, callbacks=[count], schedules={"beta": pv.linear_warmup(2)})
    return {"steps": history["steps"], "beta": history["beta"], "seen": seen, "weights": vae.state_dict()}


def noise_and_order() -> Any:
    """The noise and the data of every step."""
    torch.manual_seed(7)
    noises, rows = [], []

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.ones(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale.exp()), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
        if torch.is_grad_enabled():
            noises.append(z.detach() - pyro.param("loc").detach())
            rows.append(x)

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    train = shared(pv.data.Batches(torch.arange(12.0), batch_size=4, shuffle=True))
    pv.fit(svi, train, epochs=2, progress=False)
    return {"noises": noises, "rows": rows, "generator": torch.get_rng_state()}


def small_vae() -> pv.VAE:
    return pv.VAE(
        pv.StandardNormalPrior(2),
        pv.BernoulliLikelihood(pv.MLP(2, D, hidden_dims=(8,))),
        pv.DiagonalNormalPosterior(nn.Sequential(nn.BatchNorm1d(D), pv.MLP(D, 4, hidden_dims=(8,)))),
    )


def spreading() -> Any:
    """Bounds of 5 data, and of 1: a tuple of tensors, and a tensor."""
    torch.manual_seed(1)
    vae = small_vae().eval()
    distributed.same_start(dict(vae.named_parameters()), [vae])
    x = data()[0]
    found = distributed.spread(lambda rows: pv.bounds(vae.model, vae.guide, rows, num_particles=4000), x[:5])
    one = distributed.spread(lambda rows: pv.log_likelihood(vae.model, vae.guide, rows, num_particles=2), x[:1])
    return {"bounds": found, "names": found._fields, "one": one}


def not_finite(on_nonfinite: str) -> Any:
    """One process's loss is not finite, once."""
    torch.manual_seed(0)
    times = []

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        if distributed.rank() == distributed.world_size() - 1 and torch.is_grad_enabled():
            times.append(None)
        bad = len(times) == 3
        with pyro.plate("data", len(x)), pyro.validation_enabled(False):
            pyro.sample("x", dist.Normal(loc / 0.0 if bad else loc, 1.0), obs=x)

    svi = SVI(model, lambda x: None, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            history = pv.fit(svi, [torch.ones(4)] * 2, epochs=3, progress=False, on_nonfinite=on_nonfinite)
    except (FloatingPointError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}", "loc": pyro.param("loc").detach()}
    return {"steps": history["steps"], "loc": pyro.param("loc").detach(), "said": [str(w.message) for w in said]}


def not_finite_raised() -> Any:
    return not_finite("raise")


def not_finite_restored() -> Any:
    return not_finite("restore")


def different_models() -> Any:
    """Another model in each process."""
    vae = pv.VAE(
        pv.StandardNormalPrior(2),
        pv.BernoulliLikelihood(pv.MLP(2, D, hidden_dims=(4 + distributed.rank(),))),
        pv.DiagonalNormalPosterior(pv.MLP(D, 4, hidden_dims=())),
    )
    try:
        distributed.same_start(dict(vae.named_parameters()))
    except RuntimeError as error:
        return str(error)
    return "no error"


def changed_in_one() -> Any:
    """A callback that changes the weights in one process only."""
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 0.01}), Trace_ELBO())

    class Meddle(pv.Callback):
        def step_end(self, run: Any) -> None:
            next(iter(run.parameters.values())).data += 0.1

    try:
        pv.fit(svi, [data()[0]], epochs=1, progress=False, callbacks=[Meddle()])
    except RuntimeError as error:
        return str(error)
    return "no error"


def different_epochs() -> Any:
    """Another number of epochs in each process."""
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 0.01}), Trace_ELBO())
    try:
        pv.fit(svi, [data()[0]], epochs=1 + distributed.rank(), progress=False)
    except ValueError as error:
        return str(error)
    return "no error"


def rows_of_a_dictionary() -> Any:
    """Figures and parameters where the batches are dictionaries, and the data no first argument."""

    def model(batch: Any, size: Any = None) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", size, subsample=batch["x"]):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=batch["x"])

    svi = SVI(model, lambda batch, size=None: None, pyro.optim.SGD({"lr": 0.001}), Trace_ELBO())
    x = torch.linspace(-1.0, 3.0, 30)
    part = slice(None) if distributed.world_size() == 1 else slice(distributed.rank(), None, 2)
    batches = [{"names": ["a", "b"], "x": batch[part]} for batch in x.split(8)]
    history = pv.fit(svi, batches, epochs=2, size=30, validation=batches, progress=False)
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history]
    return {"history": rows, "parameters": {"loc": pyro.param("loc").detach().clone()}}


def linear_gaussian() -> Any:
    """The fit of a model whose optimum is known, with each process's own noise: the ELBO it ends with."""
    torch.manual_seed(0)
    x = four_columns()
    vae = pv.VAE(
        pv.StandardNormalPrior(1),
        pv.GaussianLikelihood(nn.Linear(1, 4), scale="shared"),
        pv.DiagonalNormalPosterior(nn.Linear(4, 2)),
    )
    svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 0.02}), Trace_ELBO())
    train = shared(pv.data.Batches(x, batch_size=50, shuffle=True))
    slower = pv.LearningRate(pv.linear_warmup(300, start=1.0, end=0.01))
    pv.fit(svi, train, epochs=300, progress=False, callbacks=[slower])
    return distributed.spread(lambda rows: pv.bounds(vae.model, vae.guide, rows, num_particles=500).elbo, x).mean()


def four_columns() -> Tensor:
    generator = torch.Generator().manual_seed(8)
    latent = torch.randn(200, 1, generator=generator)
    return latent * torch.tensor([1.5, -1.0, 0.5, 0.2]) + 0.5 * torch.randn(200, 4, generator=generator)


def run(scenario: Callable[[], Any]) -> Any:
    pyro.clear_param_store()
    return scenario()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.processes(timeout=60):
        results = {name: run(globals()[name]) for name in sys.argv[2:]}
        file = Path(sys.argv[1]) / f"{distributed.rank()}.pt"
    threads = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    torch.save({**results, "threads": threads}, file)
