"""Disks that fill up or turn read-only, workers that die, and data larger than memory."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from runs import context, finish, result, start, steps

import pyro_vae as pv
from pyro_vae.train import Callback, read_checkpoint

WIDTH = 2048


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that any user can reach (pytest's own is for its owner alone)."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    yield directory
    if (directory / "run").exists():
        (directory / "run").chmod(0o777)
    shutil.rmtree(directory)


class AfterTwoEpochs(Callback):
    """Lets something happen to the world."""

    def __init__(self, happen: Any, *args: Any) -> None:
        self.happen, self.args = happen, args

    def epoch_end(self, run: Any) -> None:
        if run.epoch == 2:
            self.happen(*self.args)


def small_files_only() -> list[Any]:
    return [AfterTwoEpochs(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000))]


def turn_read_only() -> None:
    os.chmod("run", 0o555)
    if os.getuid() == 0:  # permissions do not bind root
        os.setuid(65534)


def read_only() -> list[Any]:
    return [AfterTwoEpochs(turn_read_only)]


FAULTS = {"full": (small_files_only, "File too large"), "read-only": (read_only, "Permission denied")}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("on_error", [pytest.param("continue", marks=pytest.mark.slow), "raise"])
def test_the_disk_fails_mid_run(fault: str, on_error: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happen, message = FAULTS[fault]
    log = place / "log"
    monkeypatch.chdir(place)
    process = start(Path("run"), callbacks=happen, on_error=on_error, log=str(log), outcome=False)
    code = finish(process)
    text = log.read_text()
    assert message in text
    last = steps(place / "run")[-1]
    assert last == 16  # the end of the second epoch was the first that could not be saved
    assert read_checkpoint(place / "run" / f"step-{last:010d}.pt")["step"] == last
    assert not list((place / "run").glob(".*.tmp"))
    assert code == (0 if on_error == "continue" else 1)
    if on_error == "continue":
        assert f"step-{last:010d}.pt is whole" in text
        assert "Training goes on" in text


class KillAWorker(Callback):
    def step_end(self, run: Any) -> None:
        import multiprocessing

        if run.step == 11:
            worker = multiprocessing.active_children()[0]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)


def kill_a_worker() -> list[Any]:
    return [KillAWorker()]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["fork", "forkserver"])
def test_a_worker_dies(workers: str, tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", data=workers, checkpoint=False)
    log = tmp_path / "log"
    process = start(tmp_path / "run", data=workers, callbacks=kill_a_worker, log=str(log))
    assert finish(process) == 1
    text = log.read_text()
    assert "DataLoader worker" in text
    assert "in train, epoch 2, batch" in text
    last = steps(tmp_path / "run")[-1]
    assert 10 <= last <= 16  # batches fetched before the death may still have been trained on
    process = start(tmp_path / "run", data=workers)
    assert finish(process) == 0
    assert finish(whole) == 0
    assert result(tmp_path / "run") == result(tmp_path / "whole")


class Memory(Callback):
    """The highest memory of a run's own, in MB: without pages of mapped files, which the system takes back at need."""

    highest = 0.0

    def step_end(self, run: Any) -> None:
        status = Path("/proc/self/status").read_text()
        self.highest = max(self.highest, int(status.partition("RssAnon:")[2].split()[0]) / 1024)


def peak_memory(path: str, rows: int, how: str, answer: Any) -> None:
    """Train for one epoch on a mapped file and tell the highest memory, in MB."""
    torch.set_num_threads(1)
    data = np.memmap(path, dtype=np.uint8, mode="r", shape=(rows, WIDTH))
    vae = pv.VAE(
        pv.StandardNormalPrior(2),
        pv.GaussianLikelihood(torch.nn.Linear(2, WIDTH)),
        pv.DiagonalNormalPosterior(torch.nn.Linear(WIDTH, 4)),
    )
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    batches: Any = pv.data.Batches(data, batch_size=500, shuffle=True)
    if how == "loader":
        batches = torch.utils.data.DataLoader(Rows(data), batch_size=500, shuffle=True)
    memory = Memory()
    pv.fit(svi, batches, epochs=1, callbacks=[memory], progress=False)
    answer.put(memory.highest)


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.data[index])).float() / 255


@pytest.mark.slow
@pytest.mark.parametrize("how", ["batches", "loader"])
def test_memory_stays_flat_as_the_file_grows_tenfold(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunk = np.random.default_rng(0).integers(0, 256, (10_000, WIDTH), dtype=np.uint8).tobytes()
    highest = []
    for rows in (20_000, 200_000):
        path = tmp_path / "data.bin"
        with open(path, "wb") as file:
            for _ in range(rows // 10_000):
                file.write(chunk)
        answer = context.Queue()
        process = context.Process(target=peak_memory, args=(str(path), rows, how, answer))
        process.start()
        highest.append(answer.get(timeout=250))
        assert finish(process) == 0
    with capsys.disabled():
        print(f"\n{how}: {highest[0]:.0f} MB with 41 MB of data, {highest[1]:.0f} MB with 410 MB")
    assert highest[1] - highest[0] < 60  # of 369 MB more data; what the allocator keeps varies by some 20
