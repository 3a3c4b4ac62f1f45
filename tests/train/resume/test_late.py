"""State that was lost: what appears after the first batch, baselines, and the states of loaders and samplers."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from test_resume import KillAt, Killed, assert_equal, outcome, seed
from tiny import images
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Sampler, TensorDataset

import pyro_vae as pv
from pyro_vae.infer import Adam
from pyro_vae.train import Checkpoint, fit, linear_warmup

# Small stories: whether a global variable counts its batch as all data does not matter here.
pytestmark = pytest.mark.filterwarnings("ignore:latent variable '.*' is global")


def train(m: Any, data: Any, callbacks: list[Any], resume: Any = None) -> Any:
    schedules = {"time": linear_warmup(9, end=9.0)} if m.timed else {}
    return fit(m.svi, data, epochs=4, schedules=schedules, callbacks=callbacks, resume=resume, progress=False)


def check(make_model: Any, make_data: Any, directory: Path, step: int, model_seed: int = 100) -> None:
    """Killed and resumed, the run ends as the one that was never stopped."""
    seed(1)
    m = make_model()
    seed(2)
    whole = outcome(m, train(m, make_data(), []))
    seed(1)
    m = make_model()
    seed(2)
    with pytest.raises(Killed):
        train(m, make_data(), [Checkpoint(directory, every=0), KillAt(step)], directory)
    seed(model_seed)
    m = make_model()
    seed(200)
    assert_equal(outcome(m, train(m, make_data(), [Checkpoint(directory, every=0)], directory)), whole)


def late(optim: Any, start: float) -> Any:
    """A model whose second half, a module with running averages and a constrained parameter, comes into play later."""

    def make() -> Any:
        first = nn.Linear(2, 6)
        second = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6))

        def model(x: Any, *, time: Any) -> None:
            pyro.module("first", first)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                logits = first(z)
                if time > start:
                    pyro.module("second", second)
                    scale = pyro.param("scale", torch.full((6,), 0.5), constraint=dist.constraints.positive)
                    logits = second(logits) * scale
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(x: Any, *, time: Any) -> None:
            loc = pyro.param("loc", torch.zeros(2))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

        svi = SVI(model, guide, optim(), Trace_ELBO())
        return SimpleNamespace(svi=svi, vae=nn.ModuleList([first, second]), timed=True)

    return make


OPTIMIZERS = {"Pyro's": lambda: pyro.optim.Adam({"lr": 1e-2}), "ours": lambda: Adam({"lr": 1e-2})}


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("step", [5, 8, 11])  # before and after the second half has appeared, in step 7
def test_modules_and_parameters_that_appear_later(optim: str, step: int, tmp_path: Path) -> None:
    batches = pv.data.Batches(images(20), batch_size=8, shuffle=True)
    # What the run has not used yet is in no checkpoint: it is as the program makes it.
    check(late(OPTIMIZERS[optim], 2.0), lambda: batches_again(batches), tmp_path, step, 1 if step < 7 else 100)


def batches_again(batches: Any) -> Any:
    batches.epoch = 0
    return batches


def every_other(optim: Any) -> Any:
    """A model that has one of two parameters, by turns: after a resume either may be the one that is there."""

    def make() -> Any:
        def model(x: Any) -> None:
            name = "even" if int(x[0, 0]) else "odd"
            p = pyro.param(name, torch.full((6,), 0.5), constraint=dist.constraints.unit_interval)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Bernoulli(p).to_event(1), obs=x)

        svi = SVI(model, lambda x: None, optim(), Trace_ELBO())
        return SimpleNamespace(svi=svi, vae=nn.Module(), timed=False)

    return make


@pytest.mark.parametrize("step", [4, 5, 7, 8])
def test_parameters_by_turns(step: int, tmp_path: Path) -> None:
    x = images(20)
    x[:, 0] = torch.tensor([1.0, 0.0] * 10)
    batches = [x[0::2][:5], x[0::2][5:], x[1::2][:5]]
    check(every_other(OPTIMIZERS["Pyro's"]), lambda: batches, tmp_path, step)


def sometimes(optim: Any) -> Any:
    """A parameter that always exists and has a gradient in some steps: in the others Pyro leaves it one of zeros."""

    def make() -> Any:
        def model(x: Any) -> None:
            p = pyro.param("p", torch.full((6,), 0.5), constraint=dist.constraints.unit_interval)
            more = pyro.param("more", torch.full((6,), 0.5), constraint=dist.constraints.unit_interval)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Bernoulli(p * more if int(x[0, 0]) else p).to_event(1), obs=x)

        svi = SVI(model, lambda x: None, optim(), Trace_ELBO())
        return SimpleNamespace(svi=svi, vae=nn.Module(), timed=False)

    return make


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("step", [3, 4, 7])
def test_a_parameter_with_a_gradient_in_some_steps(optim: str, step: int, tmp_path: Path) -> None:
    x = images(20)
    x[:, 0] = torch.tensor([1.0, 0.0] * 10)
    check(sometimes(OPTIMIZERS[optim]), lambda: [x[0::2], x[1::2][:5], x[1::2][5:]], tmp_path, step)


def with_baseline() -> Any:
    """A discrete latent variable whose score function has Pyro's decaying average for a baseline."""

    def model(x: Any) -> None:
        p = pyro.param("p", torch.full((6,), 0.4), constraint=dist.constraints.unit_interval)
        c = pyro.sample("c", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p if c > 0 else 1 - p).to_event(1), obs=x)

    def guide(x: Any) -> None:
        q = pyro.param("q", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        baseline = {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}
        pyro.sample("c", dist.Bernoulli(q), infer={"baseline": baseline})

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceGraph_ELBO())
    return SimpleNamespace(svi=svi, vae=nn.Module(), timed=False)


@pytest.mark.parametrize("step", [2, 5, 6])
def test_decaying_average_baselines(step: int, tmp_path: Path) -> None:
    check(with_baseline, lambda: images(20).split(8), tmp_path, step)
    names = [name for name in pyro.get_param_store() if "baseline" in name]
    assert names == ["__baseline_avg_downstream_cost_c"]


def with_network_baseline() -> Any:
    """The same with a network for a baseline, trained beside model and guide."""
    network = nn.Linear(6, 1)
    story = with_baseline().svi

    def guide(x: Any) -> None:
        pyro.module("baseline", network)
        q = pyro.param("q", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        baseline = {"nn_baseline": lambda mean: network(mean).squeeze(-1), "nn_baseline_input": x.mean(0)}
        pyro.sample("c", dist.Bernoulli(q), infer={"baseline": baseline})

    svi = SVI(story.model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceGraph_ELBO())
    return SimpleNamespace(svi=svi, vae=network, timed=False)


@pytest.mark.parametrize("step", [2, 6])
def test_networks_as_baselines(step: int, tmp_path: Path) -> None:
    check(with_network_baseline, lambda: images(20).split(8), tmp_path, step)
    assert "baseline$$$weight" in pyro.get_param_store()


# -- loaders and samplers ----------------------------------------------------------------------------------------------


def plain() -> Any:
    def model(x: Any) -> None:
        p = pyro.param("p", torch.full((6,), 0.4), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p).to_event(1), obs=x)

    svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    return SimpleNamespace(svi=svi, vae=nn.Module(), timed=False)


class Own(Sampler):  # type: ignore[type-arg]
    """A sampler that draws from a generator of its own."""

    def __init__(self, generator: Any) -> None:
        self.rng = generator

    def __iter__(self) -> Any:
        if isinstance(self.rng, torch.Generator):
            return iter(torch.randperm(20, generator=self.rng).tolist())
        order = list(range(20))
        self.rng.shuffle(order)
        return iter(order)

    def __len__(self) -> int:
        return 20


class Counting(Sampler):  # type: ignore[type-arg]
    """A sampler with a state: each epoch's order is another one, of a number that it counts itself."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Any:
        self.count += 1
        return iter(torch.randperm(20, generator=torch.Generator().manual_seed(self.count)).tolist())

    def __len__(self) -> int:
        return 20

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Stateful:
    """A loader that goes on where its state says, and that reads no batch twice."""

    def __init__(self) -> None:
        self.epoch, self.next = 0, 0
        self.read: list[tuple[int, int]] = []

    def __iter__(self) -> Any:
        order = torch.randperm(20, generator=torch.Generator().manual_seed(self.epoch))
        while self.next < 3:
            batch = images(20)[order[8 * self.next : 8 * self.next + 8]]
            self.read.append((self.epoch, self.next))
            self.next += 1
            yield batch
        self.epoch, self.next = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.next = state["epoch"], state["next"]


class Dataset(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Augments its data by a generator of its own."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(3)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return (torch.from_numpy(self.generator.random(6)) < 0.4).float()


DATA = TensorDataset(images(20))
LOADERS: dict[str, Any] = {
    "sampler with torch's": lambda: DataLoader(DATA, 8, sampler=Own(torch.Generator().manual_seed(3))),
    "sampler with numpy's": lambda: DataLoader(DATA, 8, sampler=Own(np.random.default_rng(3))),
    "sampler with numpy's older": lambda: DataLoader(DATA, 8, sampler=Own(np.random.RandomState(3))),
    "sampler with Python's": lambda: DataLoader(DATA, 8, sampler=Own(random.Random(3))),
    "sampler of torch": lambda: DataLoader(
        DATA, 8, sampler=RandomSampler(DATA, generator=torch.Generator().manual_seed(3))
    ),
    "batch sampler": lambda: DataLoader(
        DATA, batch_sampler=torch.utils.data.BatchSampler(Own(np.random.default_rng(3)), 8, False)
    ),
    "data set": lambda: DataLoader(Dataset(), 8),
    "sampler with a state": lambda: DataLoader(DATA, 8, sampler=Counting()),
    "loader with a state": Stateful,
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("step", [2, 4, 5, 6])
@pytest.mark.slow
def test_generators_and_states_of_loaders_and_samplers(loader: str, step: int, tmp_path: Path) -> None:
    check(plain, LOADERS[loader], tmp_path, step)


def test_a_loader_with_a_state_reads_no_batch_twice(tmp_path: Path) -> None:
    seed(1)
    with pytest.raises(Killed):
        train(plain(), Stateful(), [Checkpoint(tmp_path, every=0), KillAt(6)], tmp_path)
    seed(2)
    loader = Stateful()
    train(plain(), loader, [Checkpoint(tmp_path, every=0)], tmp_path)
    assert loader.read == [(1, 2), *((epoch, batch) for epoch in (2, 3) for batch in range(3))]
