"""A batch that cannot be had: the workers of a data loader die alone, or with the run that is asked to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from tiny import images, make, parameters_of, same
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae.train import Callback, Checkpoint, fit, read_checkpoint

BATCHES = 3  # an epoch


class Breaking(DataLoader):  # type: ignore[type-arg]
    """Fails before one of its batches, counted over all epochs, as where the worker that has it is no more."""

    def __init__(self, at: int = -1, happen: Callable[[], None] = lambda: None, **keywords: Any) -> None:
        super().__init__(TensorDataset(images(20)), 8, shuffle=True, **keywords)
        self.left, self.happen = at, happen

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if self.left == 0:
                self.happen()
                raise ConnectionResetError(104, "Connection reset by peer")
            self.left -= 1
            yield batch


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def interrupt_soon() -> None:
    threading.Timer(0.1, interrupt).start()


def train(m: Any, batches: Any, callbacks: list[Any], resume: Any = None, validation: Any = None) -> Any:
    return fit(m.svi, batches, epochs=3, validation=validation, callbacks=callbacks, resume=resume, progress=False)


def outcome(m: Any, history: Any) -> Any:
    return history["train_elbo"], parameters_of(m.vae), torch.rand(3)


def own() -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(5)}


def check(make_batches: Callable[..., Any], validation: Callable[..., Any], step: int, directory: Path) -> None:
    """Interrupted and resumed, the run ends as if it had never been."""
    pyro.set_rng_seed(2)
    m = make()
    whole = outcome(m, train(m, make_batches(-1), [], validation=validation(-1)))
    pyro.set_rng_seed(2)
    with pytest.raises(SystemExit) as stopped:
        train(make(), make_batches(), [Checkpoint(directory, every=float("inf"))], directory, validation())
    assert stopped.value.code == 130
    assert read_checkpoint(directory / f"step-{step:010d}.pt")["step"] == step
    pyro.set_rng_seed(3)
    m = make(seed=3)
    elbo, parameters, drawn = outcome(m, train(m, make_batches(-1), [Checkpoint(directory)], directory, validation(-1)))
    assert elbo == whole[0]
    assert same(parameters, whole[1])
    assert torch.equal(drawn, whole[2])


@pytest.mark.parametrize("happen", [interrupt, interrupt_soon])
@pytest.mark.parametrize("own", [dict, own])
@pytest.mark.parametrize("at", [1, BATCHES, BATCHES + 1])  # within an epoch, before its first batch
def test_a_signal_and_no_more_batches(at: int, own: Any, happen: Any, tmp_path: Path, capsys: Any) -> None:
    check(lambda at=at: Breaking(at, happen, **own()), lambda at=0: None, at, tmp_path)
    text = capsys.readouterr().err
    assert "no more batches (ConnectionResetError: [Errno 104] Connection reset by peer)" in text
    assert f"Go on with fit(..., resume={str(tmp_path)!r})" in text


@pytest.mark.parametrize("own", [dict, own])
@pytest.mark.slow
def test_a_signal_and_no_more_batches_of_the_validation(own: Any, tmp_path: Path) -> None:
    # Its second epoch: the steps of training's are taken, and the epoch is not at its end.
    def validation(at: int = BATCHES + 1) -> Any:
        return Breaking(at, interrupt, **own())

    check(lambda at=0: Breaking(**own()), validation, 2 * BATCHES, tmp_path)


def test_a_signal_and_no_batch_at_all(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        train(make(), Breaking(0, interrupt), [Checkpoint(tmp_path)])
    assert stopped.value.code == 130
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert "stopped at step 1 (epoch 1, batch 1)" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["train", "validation"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_broken_connection_is_a_dead_worker(where: str, checkpoint: bool, tmp_path: Path) -> None:
    callbacks = [Checkpoint(tmp_path)] if checkpoint else []
    data = {"train": Breaking(), "validation": Breaking()} | {where: Breaking(1, num_workers=1)}
    with pytest.raises(RuntimeError, match=f"a DataLoader worker died: expected(.|\n)*in {where}.* batch 2") as caught:
        train(make(), data["train"], callbacks, validation=data["validation"])
    assert caught.value.__cause__ is not None
    assert isinstance(caught.value.__cause__.__cause__, ConnectionResetError)


def test_without_workers_a_broken_connection_is_what_it_is() -> None:
    with pytest.raises(ConnectionResetError):
        train(make(), Breaking(1), [])


class Torn(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        raise FileNotFoundError("image 20 is gone")


def test_a_workers_own_error_of_the_system_is_not_its_death() -> None:
    with pytest.raises(FileNotFoundError, match="image 20 is gone"):
        train(make(), DataLoader(Torn(images(20)), 8, num_workers=1), [])


class KillTheWorkers(Callback):
    """Ends the workers in the midst of a step, and the run with them where it is asked to stop, as SIGTERM to all."""

    essential = True  # an exception in the callback would end the run

    def __init__(self, stop: bool) -> None:
        self.stop, self.survived = stop, False

    def start(self, run: Any) -> None:
        self.loader = run.train

    def step_end(self, run: Any) -> None:
        if run.step == 4:
            for worker in self.loader._iterator._workers:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and torch may still ask
            if self.stop:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            self.survived = True


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.slow
def test_a_death_in_the_midst_of_a_step_waits_for_its_end(stop: bool, tmp_path: Path) -> None:
    """Torch raises it anywhere: half an update, or half a checkpoint, would be done."""
    before = signal.getsignal(signal.SIGCHLD)
    loader = DataLoader(
        TensorDataset(images(20)), 8, num_workers=2, multiprocessing_context="fork", persistent_workers=True
    )
    kill = KillTheWorkers(stop)
    with pytest.raises(SystemExit if stop else RuntimeError) as caught:
        train(make(), loader, [kill, Checkpoint(tmp_path, every=0)])
    with contextlib.suppress(RuntimeError):  # of the dead workers; a garbage collection later would raise it elsewhere
        loader._iterator._shutdown_workers()  # type: ignore[union-attr]
    assert kill.survived
    assert (tmp_path / "step-0000000004.pt").exists()
    if stop:
        assert caught.value.code == 143
    else:
        assert "is killed by signal: Killed" in str(caught.value)
        assert "in train, epoch 2, batch 2" in str(caught.value)
    after = signal.getsignal(signal.SIGCHLD)
    assert after is before or "torch" in after.__module__  # the loader's own
