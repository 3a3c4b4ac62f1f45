"""SIGINT and SIGTERM: the step is finished, a checkpoint written, and the way to go on is said."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import finish, result, start, steps, wait_for
from torch.utils.data import DataLoader, Dataset

from pyro_vae.train import Callback


class Slow(Callback):
    """Gives the test time to send its signal."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def step_end(self, run: Any) -> None:
        time.sleep(self.seconds)


def slow() -> list[Any]:
    return [Slow(0.03)]


def very_slow() -> list[Any]:
    return [Slow(20.0)]


def own_session() -> None:
    os.setsid()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        *(pytest.param(n, 128 + n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)),
    ],
)
def test_stops_politely_and_goes_on_to_the_same_end(number: int, code: int, tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", checkpoint=False)
    directory, log = tmp_path / "run", tmp_path / "log"
    # No checkpoint but the one of the polite stop.
    process = start(directory, every=float("inf"), callbacks=slow, log=str(log))
    wait_for(lambda: log.exists() and "starting afresh" in log.read_text(), process)
    time.sleep(0.3)
    assert steps(directory) == []
    os.kill(process.pid, number)
    assert finish(process) == code
    text = log.read_text()
    assert "A second signal stops at once" in text
    assert f"Go on with fit(..., resume={str(directory)!r})" in text
    assert len(steps(directory)) == 1
    process = start(directory, every=float("inf"), log=str(log))
    assert finish(process) == 0
    assert f"going on from {directory}" in log.read_text()
    assert finish(whole) == 0
    assert result(directory) == result(tmp_path / "whole")


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(tmp_path / "run", callbacks=very_slow, log=str(log))
    wait_for(lambda: log.exists() and "starting afresh" in log.read_text(), process)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    wait_for(lambda: "A second signal" in log.read_text(), process)
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == -signal.SIGTERM
    assert time.monotonic() - begun < 5


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", ["fork", "forkserver"])  # a forked one alone outlives SIGINT
def test_a_signal_reaches_the_workers_too_and_leaves_none_behind(
    workers: str, number: int, code: int, tmp_path: Path
) -> None:
    whole = start(tmp_path / "whole", data=workers, checkpoint=False)
    log = tmp_path / "log"
    process = start(tmp_path / "run", data=workers, callbacks=slow, log=str(log), prepare=own_session)
    wait_for(lambda: len(steps(tmp_path / "run")) > 0, process)
    os.killpg(process.pid, number)  # as a terminal does, or a scheduler: to the whole group
    assert finish(process) == code
    assert "Go on with fit" in log.read_text()
    deadline = time.monotonic() + 10
    while _group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _group(process.pid) == []
    assert finish(start(tmp_path / "run", data=workers)) == 0
    assert finish(whole) == 0
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def _group(leader: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


class SlowValidation(Dataset):  # type: ignore[type-arg]
    """Fifty seconds of validation, a tenth for each batch."""

    def __len__(self) -> int:
        return 500

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.1)
        return torch.zeros(12)


def slow_validation() -> Any:
    return DataLoader(SlowValidation(), batch_size=1)


def test_a_long_validation_is_left_within_a_batch(tmp_path: Path) -> None:
    log, directory = tmp_path / "log", tmp_path / "run"
    process = start(directory, every=0.0, log=str(log), validation=slow_validation)
    wait_for(lambda: steps(directory)[-1:] == [8], process)  # all of the first epoch's
    time.sleep(0.5)
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 143
    assert time.monotonic() - begun < 5
    assert steps(directory)[-1] == 8
    assert "Go on with fit" in log.read_text()


def test_a_signal_that_is_ignored_or_handled_stays_so(tmp_path: Path) -> None:
    from runs import train

    seen: dict[int, Any] = {}

    def look() -> list[Any]:
        return [lambda run: seen.update({n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGUSR1)})]

    def own(*_: Any) -> None:
        pass

    before = [signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGUSR1, own)]
    try:
        train(str(tmp_path / "run"), epochs=1, callbacks=look)
        assert seen == {signal.SIGHUP: signal.SIG_IGN, signal.SIGUSR1: own}
    finally:
        for number, handler in zip((signal.SIGHUP, signal.SIGUSR1), before, strict=True):
            signal.signal(number, handler)


def test_handlers_are_put_back(tmp_path: Path) -> None:
    from runs import train

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    inside = []
    train(
        str(tmp_path / "run"), epochs=1, callbacks=lambda: [lambda run: inside.append(signal.getsignal(signal.SIGTERM))]
    )
    assert inside[0] not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_no_handler_is_touched(tmp_path: Path) -> None:
    from runs import train

    before = signal.getsignal(signal.SIGTERM)
    inside: list[Any] = []
    thread = threading.Thread(
        target=train,
        args=(str(tmp_path / "run"),),
        kwargs={"epochs": 1, "callbacks": lambda: [lambda run: inside.append(signal.getsignal(signal.SIGTERM))]},
    )
    thread.start()
    thread.join()
    assert inside == [before]
