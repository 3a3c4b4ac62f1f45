"""One run at a time in a directory; the lock ends with its process."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny import images, make

from pyro_vae.train import Checkpoint, fit
from pyro_vae.train.resume.lock import locked

context = multiprocessing.get_context("forkserver")


def hold(directory: str, pipe: Any) -> None:
    with locked(Path(directory)):
        pipe.send("locked")
        pipe.recv()


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """Another process that holds the lock."""
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(str(tmp_path), there))
    process.start()
    assert here.recv() == "locked"
    yield process
    if process.is_alive():
        process.kill()
    process.join()


def train(directory: Path) -> Any:
    callbacks = [Checkpoint(directory, every=0)]
    return fit(make().svi, images().split(16), epochs=1, callbacks=callbacks, resume=directory, progress=False)


@pytest.mark.slow
def test_another_process_is_named(other: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"no other run uses, process {other.pid} writes checkpoints to"):
        train(tmp_path)
    assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.slow
def test_a_lock_dies_with_its_process(other: Any, tmp_path: Path) -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert len(train(tmp_path)) == 1


def test_a_run_within_a_run_is_refused(tmp_path: Path) -> None:
    caught = []

    def inner(run: Any) -> None:
        with pytest.raises(ValueError, match=f"process {os.getpid()} writes") as error:
            train(tmp_path)
        caught.append(error)

    fit(make().svi, images().split(16), epochs=1, callbacks=[inner, Checkpoint(tmp_path)], progress=False)
    assert len(caught) == 1
    assert len(train(tmp_path)) == 1
