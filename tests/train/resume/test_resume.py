"""A run that was stopped and resumed ends where the run that was never stopped ends, to the bit."""

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
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from tiny import images, make
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pyro_vae as pv
from pyro_vae.infer import Adam, CompiledSVI
from pyro_vae.train import Callback, Checkpoint, EarlyStopping, LearningRate, fit, linear_warmup, one_cycle

# Small stories: whether a global variable counts its batch as all data does not matter here.
pytestmark = pytest.mark.filterwarnings("ignore:latent variable '.*' is global")


class Killed(BaseException):
    """What no one catches, as a SIGKILL."""


class KillAt(Callback):
    """Dies at the end of a step, before the checkpoint of that step is written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_end(self, run: Any) -> None:
        if run.step == self.step:
            raise Killed


class Augmented(Dataset):  # type: ignore[type-arg]
    """Draws from every generator when it is read."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        noise = torch.rand(6) + np.random.rand() + random.random()
        return (noise > 1.5).float()


def with_generator() -> Any:
    return DataLoader(TensorDataset(images(20)), 8, shuffle=True, generator=torch.Generator().manual_seed(5))


def two_functions() -> Any:
    """No module owns model and guide; parameters with constraints; buffers in a closed-over module."""
    encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2))
    decoder = nn.Linear(2, 6)

    def model(x: Any, *, beta: Any = None) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Any, *, beta: Any = None) -> None:
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", lambda: torch.rand(2) + 0.5, constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    return SimpleNamespace(svi=svi, vae=nn.ModuleList([encoder, decoder]))


def auto() -> Any:
    def model(x: Any, *, beta: Any = None) -> None:
        p = pyro.sample("p", dist.Beta(torch.ones(6), torch.ones(6)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p).to_event(1), obs=x)

    guide = AutoDiagonalNormal(model)
    return SimpleNamespace(svi=SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()), vae=guide)


def scheduler() -> Any:
    optim = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.5})
    return make(optim=optim)


MODELS = {
    "plain Pyro": lambda: make(batch_norm=True),
    "rate per parameter": lambda: make(optim=pyro.optim.Adam(lambda name: {"lr": 0.01 if "prior" in name else 0.02})),
    "clipped": lambda: make(optim=pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.99})),
    "scheduler of Pyro": scheduler,
    "one optimiser": lambda: make(optim=Adam({"lr": 1e-2}, clip_norm=1.0)),
    "two functions": two_functions,
    "AutoGuide": auto,
    "compiled": lambda: make(optim=Adam({"lr": 1e-2}), svi=lambda *args: CompiledSVI(*args, compile="graph")),
}
DATA = {
    "Batches": lambda: pv.data.Batches(images(20), batch_size=8, shuffle=True, seed=4),
    "binarised Batches": lambda: pv.data.Batches(
        (images(20) * 200).to(torch.uint8), batch_size=8, shuffle=True, transform=pv.data.binarize
    ),
    "list": lambda: images(20).split(8),
    "DataLoader": lambda: DataLoader(TensorDataset(images(20)), 8, shuffle=True),
    "DataLoader with a generator": with_generator,
    "augmenting DataLoader": lambda: DataLoader(Augmented(), 8, shuffle=True),
}


def train(m: Any, data: Any, callbacks: list[Any], resume: Any = None, epochs: int = 3, transform: Any = None) -> Any:
    extra = [LearningRate()] if isinstance(m.svi.optim, pyro.optim.PyroLRScheduler) else [LearningRate(one_cycle(3))]
    return fit(
        m.svi,
        data,
        epochs=epochs,
        validation=images(13, seed=2).split(5),
        schedules={"beta": linear_warmup(2)},
        callbacks=[*callbacks, *extra],
        transform=transform,
        progress=False,
        resume=resume,
    )


def outcome(m: Any, history: Any) -> Any:
    """All that must be equal: history, weights, and the generators that the rest of the program draws from."""
    figures = [{name: value for name, value in row.items() if name != "seconds"} for row in history]
    weights = {name: value.clone() for name, value in m.vae.state_dict().items()}
    weights |= {f"store {name}": value.detach().clone() for name, value in pyro.get_param_store().items()}
    return figures, weights, torch.rand(3), np.random.rand(3).tolist(), random.random()


def assert_equal(a: Any, b: Any) -> None:
    assert a[0] == b[0]
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        assert torch.equal(a[1][name], b[1][name]), name
    assert torch.equal(a[2], b[2])
    assert a[3:] == b[3:]


def seed(number: int) -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(number)


def check(make_model: Any, make_data: Any, directory: Path, kills: tuple[int, ...], transform: Any = None) -> None:
    seed(1)
    m = make_model()
    seed(2)
    whole = outcome(m, train(m, make_data(), [], transform=transform))
    for number, step in enumerate(kills):
        seed(1 if number == 0 else 100 + number)  # other initial weights, other generators: all comes from the file
        m = make_model()
        seed(2 if number == 0 else 200 + number)
        with pytest.raises(Killed):
            train(m, make_data(), [Checkpoint(directory, every=0), KillAt(step)], directory, transform=transform)
    seed(300)
    m = make_model()
    history = train(m, make_data(), [Checkpoint(directory, every=0)], directory, transform=transform)
    assert_equal(outcome(m, history), whole)


@pytest.mark.parametrize("model", MODELS)
def test_every_model(model: str, tmp_path: Path) -> None:
    check(MODELS[model], DATA["Batches"], tmp_path, (2, 5))


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("step", [4, 5, 9])  # the last checkpoint: the end of an epoch, the next one's first, mid-epoch
@pytest.mark.slow
def test_every_kind_of_data(data: str, step: int, tmp_path: Path) -> None:
    check(MODELS["plain Pyro"], DATA[data], tmp_path, (step,))


@pytest.mark.parametrize("step", [4, 5])  # the last checkpoint: the end of an epoch, the next one's first step
def test_a_transform_that_draws(step: int, tmp_path: Path) -> None:
    """Looking at model and guide transforms the first batch once more, and moves no generator."""

    def flip(x: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.rand(x.shape) < 0.1, 1 - x, x)

    check(MODELS["plain Pyro"], DATA["Batches"], tmp_path, (step,), flip)


@pytest.mark.slow
def test_worker_processes(tmp_path: Path) -> None:
    check(MODELS["plain Pyro"], lambda: DataLoader(Augmented(), 8, shuffle=True, num_workers=2), tmp_path, (2, 5))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, within its compiler
def test_compiled_for_the_cpu(tmp_path: Path) -> None:
    def compiled() -> Any:
        return make(optim=Adam({"lr": 1e-2}), svi=CompiledSVI)

    check(compiled, DATA["Batches"], tmp_path, (2, 5))


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    seed(1)
    m = make()
    whole = outcome(m, train(m, DATA["DataLoader"](), [Checkpoint(tmp_path), EarlyStopping(patience=5)]))
    seed(9)
    m = make(seed=9)
    history = train(m, DATA["DataLoader"](), [Checkpoint(tmp_path), EarlyStopping(patience=5)], tmp_path)
    assert_equal(outcome(m, history), whole)  # the best weights that EarlyStopping had put back included


def test_a_finished_run_goes_on_to_more_epochs(tmp_path: Path) -> None:
    seed(1)
    m = make()
    whole = outcome(m, train(m, DATA["Batches"](), [], epochs=3))
    seed(1)
    m = make()
    train(m, DATA["Batches"](), [Checkpoint(tmp_path)], epochs=2)
    seed(9)
    m = make(seed=9)
    assert_equal(outcome(m, train(m, DATA["Batches"](), [Checkpoint(tmp_path)], tmp_path, epochs=3)), whole)


def test_early_stopping_goes_on_counting(tmp_path: Path) -> None:
    def run(callbacks: list[Any], resume: Any = None) -> Any:
        m = make(optim=pyro.optim.Adam({"lr": 0.3}))
        stopping = EarlyStopping(patience=3)
        history = fit(
            m.svi,
            images(20).split(8),
            epochs=40,
            validation=[images(30, seed=2)],
            callbacks=[stopping, *callbacks],
            resume=resume,
            progress=False,
        )
        return stopping, outcome(m, history)

    seed(1)
    stopping, whole = run([])
    assert 3 < len(whole[0]) < 40
    seed(1)
    with pytest.raises(Killed):
        run([Checkpoint(tmp_path, every=0), KillAt(3 * (len(whole[0]) - 1))], tmp_path)
    seed(7)
    resumed, again = run([Checkpoint(tmp_path, every=0)], tmp_path)
    assert_equal(again, whole)
    assert (resumed.best, resumed.best_epoch) == (stopping.best, stopping.best_epoch)


def test_starts_afresh_and_says_so_where_there_is_no_checkpoint(tmp_path: Path, capsys: Any) -> None:
    seed(1)
    m = make()
    train(m, images(20).split(8), [Checkpoint(tmp_path / "new")], tmp_path / "new")
    assert "no checkpoint" in capsys.readouterr().err
    train(m, images(20).split(8), [Checkpoint(tmp_path / "new")], tmp_path / "new", epochs=4)
    assert "going on from" in capsys.readouterr().err


def test_says_that_a_finished_run_has_nothing_to_train(tmp_path: Path, capsys: Any) -> None:
    def run(callbacks: list[Any], resume: Any = None) -> Any:
        return fit(
            make(optim=pyro.optim.Adam({"lr": 0.0})).svi,
            images(20).split(8),
            epochs=6,
            validation=[images(30, seed=2)],
            callbacks=callbacks,
            resume=resume,
            progress=False,
        )

    run([Checkpoint(tmp_path / "all")])
    run([Checkpoint(tmp_path / "all")], tmp_path / "all")
    said = capsys.readouterr().err
    assert "is complete after epoch 6 of 6, nothing to train" in said
    assert "going on" not in said
    assert "epoch 7" not in said
    stopped = [Checkpoint(tmp_path / "early"), EarlyStopping(patience=2)]
    assert len(run(stopped)) == 3
    assert len(run([Checkpoint(tmp_path / "early"), EarlyStopping(patience=2)], tmp_path / "early")) == 3
    said = capsys.readouterr().err
    assert "stopped early after epoch 3 of 6, nothing to train" in said
    assert "going on" not in said


def test_other_data_or_another_model_are_refused(tmp_path: Path) -> None:
    m = make()
    with pytest.raises(Killed):
        train(m, images(20).split(8), [Checkpoint(tmp_path, every=0), KillAt(5)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"belongs to another run:\n  train.batches: 3 in the checkpoint, 5 now"):
        train(make(), images(20).split(4), [Checkpoint(tmp_path)], tmp_path)
    other = make(hidden=(9,))
    start = {name: value.clone() for name, value in other.vae.state_dict().items()}
    with pytest.raises(ValueError, match=r"layers.0.out_features: 8 in the checkpoint, 9 now"):
        train(other, images(20).split(8), [Checkpoint(tmp_path)], tmp_path)
    assert all(torch.equal(start[name], value) for name, value in other.vae.state_dict().items())
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_resuming_adds_nothing_to_a_step(tmp_path: Path) -> None:
    """The same Python functions run each step, resumed or not: nothing is left hooked in."""
    train(make(), images(20).split(8), [Checkpoint(tmp_path, every=0)], epochs=1)
    counts = []
    for resume in (None, tmp_path):
        m = make()
        step, calls = m.svi.step, []
        m.svi.step = lambda *a, _step=step, _calls=calls, **k: _calls.append(1) or _step(*a, **k)
        train(m, images(20).split(8), [], resume, epochs=1 if resume is None else 2)
        counts.append(len(calls))
        assert m.svi.loss_and_grads.__qualname__.startswith("Trace_ELBO")
    assert counts == [3, 3]
