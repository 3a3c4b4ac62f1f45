"""What ``torchrun`` starts, and what becomes of it when processes die or are told to stop; real signals."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import free_port, start
from torch.testing import assert_close

TRAINING = Path(__file__).parent / "training.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@contextmanager
def torchrun(program: Path, *arguments: Any, max_restarts: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Two processes as people start them; whatever is left of them is killed at the end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*command, f"--max-restarts={max_restarts}", program, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finished(directory: Path, *arguments: Any, max_restarts: int = 0) -> tuple[str, list[Any]]:
    """What a run says, and its results in both processes."""
    with torchrun(TRAINING, directory, *arguments, max_restarts=max_restarts) as process:
        said = process.communicate(timeout=150)[0]
    assert process.returncode == 0, said
    return said, [torch.load(directory / f"result-{rank}.pt", weights_only=True) for rank in (0, 1)]


def steps_of(rank: int, said: str) -> list[int]:
    return [int(line.split()[-1]) for line in said.splitlines() if line.startswith(f"rank {rank} step")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return finished(tmp_path_factory.mktemp("undisturbed"))[1]


@pytest.mark.parametrize(("rank", "step"), [(0, 11), (1, 17)])
def test_a_killed_process_is_started_again_and_nothing_is_lost(tmp_path, undisturbed, rank, step):
    said, results = finished(tmp_path, "--kill", rank, step, max_restarts=1)
    assert "going on from" in said
    steps = steps_of(rank, said)
    assert steps[:step] == list(range(1, step + 1))
    assert 1 < steps[step] <= step + 1  # from the checkpoint, not from the beginning
    assert_close(results, undisturbed, rtol=0, atol=0)


def test_the_others_end_when_one_dies(tmp_path):
    port = free_port()
    both = [start(TRAINING, tmp_path, "--kill", 1, 5, rank=rank, port=port) for rank in (0, 1)]
    try:
        both[1].communicate(timeout=100)
        died = time.monotonic()
        said = both[0].communicate(timeout=100)[0]
        seconds = time.monotonic() - died
    finally:
        for process in both:
            process.kill()
    assert both[1].returncode == -signal.SIGKILL
    assert both[0].returncode == 1
    assert "process 0 of 2 waited for the others, and one of them has ended or does not answer" in said
    assert seconds < 10


def test_a_polite_stop_of_all(tmp_path, undisturbed):
    directory = tmp_path / "two"
    with torchrun(TRAINING, directory, "--slow", 0.05) as process:
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("rank 0 step 5"):
                process.send_signal(signal.SIGTERM)
                break
        said = "".join(lines) + process.communicate(timeout=100)[0]
    last = [steps_of(rank, said)[-1] for rank in (0, 1)]
    assert last[0] == last[1] < 28, said
    assert f"stopped at step {last[0] + 1}" in said
    shutil.copytree(directory, tmp_path / "one")
    said, results = finished(directory)
    assert f"at step {last[0] + 1} " in said
    assert_close(results, undisturbed, rtol=0, atol=0)

    # One process goes on where two have stopped: the same steps, other noise.
    alone = subprocess.run([sys.executable, TRAINING, tmp_path / "one"], capture_output=True, text=True, timeout=100)
    assert alone.returncode == 0, alone.stderr
    assert f"at step {last[0] + 1} " in alone.stderr
    history = torch.load(tmp_path / "one" / "result-0.pt", weights_only=True)["history"]
    assert [row["steps"] for row in history] == [row["steps"] for row in undisturbed[0]["history"]]


def test_no_process_outlives_torchrun(tmp_path):
    with torchrun(TRAINING, tmp_path, "--slow", 0.2) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("rank 1 step 3"):
                break
        workers = children_of(process.pid)
        assert len(workers) == 2
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        process.stdout.close()
    last = max(int(path.stem[5:]) for path in tmp_path.glob("step-*.pt"))
    assert last < 20
    _, results = finished(tmp_path)  # the next run is not disturbed
    assert results[0]["history"][-1]["epoch"] == 4


def children_of(parent):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
    return found


def test_the_example_in_two_processes(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "mnist_svi.py"
    flags = ["--smoke", "--dataset", "digits", "--no-compile", "--resume", "--output-dir", tmp_path]
    with torchrun(example, *flags) as process:
        said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["processes"] == 2
    assert metrics["test_log_likelihood"] > metrics["test_elbo"] > -35  # nats, 64 pixels
    assert said.count("test log p(x)") == 1
    assert said.count("starting afresh") == 1
