"""SIGKILL at random instants, also within a write: the resumed run ends where the undisturbed one ends, to the bit."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from runs import finish, result, start, steps, wait_for

from pyro_vae.train import read_checkpoint


def kill_over_and_over(tmp_path: Path, kills: int, data: str) -> dict[str, int]:
    whole = start(tmp_path / "whole", data=data, checkpoint=False)
    assert finish(whole) == 0
    chance = random.Random(f"{kills} {data}")
    count = {"kills": 0, "within a write": 0, "before the first checkpoint": 0, "runs finished": 0}
    while count["kills"] < kills or count["runs finished"] == 0:
        directory = tmp_path / f"run {count['runs finished']}"
        begun = time.monotonic()
        process = start(directory, data=data)
        if count["kills"] < kills:
            # A third anywhere from the fork on, while it starts and reads; the others once it steps and writes.
            if chance.random() < 1 / 3:
                process.join(chance.uniform(0.0, 1.0))
            else:
                wait_for(partial(_went_on, directory, steps(directory)), process)
                process.join(chance.uniform(0.0, 0.3))
        else:
            finish(process)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        # Zero where it was through just before the signal came.
        code = finish(process)
        assert code in (0, -signal.SIGKILL)
        if code:
            count["kills"] += 1
            count["within a write"] += any(directory.glob(".*.tmp"))
            count["before the first checkpoint"] += not steps(directory)
            for path in directory.glob("*.pt"):
                read_checkpoint(path)  # every file under its own name is whole, always
            assert time.monotonic() - begun < 60
            continue
        assert result(directory) == result(tmp_path / "whole")
        count["runs finished"] += 1
    return count


def _went_on(directory: Path, before: list[int]) -> bool:
    return steps(directory) != before


@pytest.mark.slow
def test_two_kills(tmp_path: Path) -> None:
    count = kill_over_and_over(tmp_path, 2, "batches")
    assert count["kills"] >= 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("data", "kills"), [("batches", 40), ("loader", 20)])
def test_many_kills(data: str, kills: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = kill_over_and_over(tmp_path, kills, data)
    with capsys.disabled():
        print(f"\n{data}: {count}")
    assert count["kills"] >= kills
