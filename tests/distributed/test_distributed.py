"""Two processes train what one process trains."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pytest
import scenarios
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.testing import assert_close

import pyro_vae as pv
from pyro_vae.infer import distributed

HERE = Path(__file__).parent


def start(program: Path, *arguments: Any, rank: int, port: int, world_size: int = 2) -> subprocess.Popen[str]:
    """One process of several, as ``torchrun`` starts it."""
    joined = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", program, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in joined.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


ONE_WITH_THE_WHOLE_BATCH = [
    "with_pyro",
    "with_one_optimiser",
    "with_size",
    "with_compiled_graph",
    "with_early_stopping",
    "sometimes_used",
    "rows_of_a_dictionary",
]
OTHERS = [
    "uneven",
    "noise_and_order",
    "spreading",
    "not_finite_raised",
    "not_finite_restored",
    "different_models",
    "changed_in_one",
    "different_epochs",
]


def in_two(directory: Path, *names: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scenarios' results in each of two processes."""
    port = free_port()
    both = [start(HERE / "scenarios.py", directory, *names, rank=rank, port=port) for rank in (0, 1)]
    try:
        said = [process.communicate(timeout=120)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    first, second = (torch.load(directory / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    return first, second


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    return in_two(tmp_path_factory.mktemp("two"), *ONE_WITH_THE_WHOLE_BATCH, *OTHERS)


@pytest.mark.parametrize("name", ONE_WITH_THE_WHOLE_BATCH)
def test_two_processes_are_one_with_the_whole_batch(two, name):
    alone = scenarios.run(getattr(scenarios, name))
    for result in two:
        assert_close(result[name], alone, rtol=2e-4, atol=2e-5)
    assert_close(two[0][name], two[1][name], rtol=0, atol=0)


def test_early_stopping_stopped_early(two):
    assert len(two[0]["with_early_stopping"]["history"]) == 2


def test_who_has_no_data_left_takes_part(two):
    first, second = (result["uneven"] for result in two)
    assert first["steps"] == second["steps"] == [5, 10]  # two batches beside five
    assert first["beta"] == second["beta"] == [0.5, 1.0]
    assert_close(first["weights"], second["weights"], rtol=0, atol=0)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the threads' names from Linux")
def test_the_exchange_s_threads_end_with_the_block(two):
    for result in two:  # one that holds tensors when the interpreter ends aborts it, now and then
        assert result["threads"]
        assert not [name for name in result["threads"] if "gloo" in name]


def test_functions_are_called_in_the_first_process_alone(two):
    assert two[0]["uneven"]["seen"] == [5, 10]
    assert two[1]["uneven"]["seen"] == []


def test_noise_and_data_differ_between_processes_and_epochs(two):
    first, second = (result["noise_and_order"] for result in two)
    noises = [*first["noises"], *second["noises"]]
    assert len({float(noise[0]) for noise in noises}) == 12  # 2 processes x 6 steps
    for epoch in (slice(0, 3), slice(3, 6)):
        rows = torch.cat([*first["rows"][epoch], *second["rows"][epoch]])
        assert rows.sort().values.tolist() == list(range(12))
    assert torch.cat(first["rows"][:3]).tolist() != torch.cat(first["rows"][3:]).tolist()
    assert torch.equal(first["generator"], second["generator"])
    # The batches joined are those of one process.
    alone = scenarios.run(scenarios.noise_and_order)
    for whole, *parts in zip(alone["rows"], first["rows"], second["rows"], strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_spread_evaluation_is_that_of_one_process(two):
    first, second = (result["spreading"] for result in two)
    alone = scenarios.run(scenarios.spreading)
    assert first["names"] == ("elbo", "iwae")
    assert_close(tuple(first["bounds"]), tuple(second["bounds"]), rtol=0, atol=0)
    assert_close(tuple(first["bounds"]), tuple(alone["bounds"]), rtol=0, atol=0.1)
    assert not torch.equal(first["bounds"].elbo, alone["bounds"].elbo)  # noise of their own
    assert first["one"].shape == (1,)
    assert torch.equal(first["one"], second["one"])


def test_what_is_not_finite_in_one_process_stops_all(two):
    first, second = (result["not_finite_raised"] for result in two)
    assert first["error"].startswith("FloatingPointError")
    assert second["error"].startswith("FloatingPointError")
    assert "epoch 2, batch 1" in second["error"]
    assert torch.equal(first["loc"], second["loc"])


def test_all_are_restored_together(two):
    first, second = (result["not_finite_restored"] for result in two)
    assert first["steps"] == second["steps"] == [2, 4, 6]
    assert torch.equal(first["loc"], second["loc"])
    assert any("Back to step 3" in line for line in first["said"])


def test_models_that_differ_are_refused(two):
    for result in two:
        assert "expected the same parameters in all processes" in result["different_models"]
        assert "(4, 2)" in result["different_models"]
        assert "(5, 2)" in result["different_models"]


def test_different_numbers_of_epochs_are_refused(two):
    for rank, result in enumerate(two):
        assert result["different_epochs"] == (
            f"epochs: expected the same in all processes, got {1 + rank} in process {rank} and {2 - rank} in process "
            f"{1 - rank}. Call fit alike in each."
        )


def test_a_change_in_one_process_is_found(two):
    for result in two:
        assert "callback that does so needs essential = True" in result["changed_in_one"]


@pytest.mark.slow
def test_with_noise_of_their_own_two_reach_the_known_optimum(tmp_path):
    x = scenarios.four_columns().double()
    eigenvalues = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)) / len(x)).flip(0)
    variance = eigenvalues[1:].mean()
    log_determinant = eigenvalues[0].log() + 3 * variance.log()
    optimum = float(-0.5 * (4 * math.log(2 * math.pi) + log_determinant + 4))  # probabilistic PCA
    for result in (*in_two(tmp_path, "linear_gaussian"), {"linear_gaussian": scenarios.run(scenarios.linear_gaussian)}):
        assert optimum - 0.02 < result["linear_gaussian"] < optimum + 0.005


# -- in one process ----------------------------------------------------------------------------------------------------


def test_alone_a_joint_step_is_a_step(make_vae, binary_data):
    weights = []
    for joint in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        vae = make_vae()
        svi = SVI(vae.model, vae.guide, pv.Adam({"lr": 0.01}), Trace_ELBO())
        with pyro.poutine.trace(param_only=True):
            svi.evaluate_loss(binary_data)
        step: Any = svi.step
        if joint:
            step = distributed.JointStep(svi, dict(pyro.get_param_store().named_parameters()))
        torch.manual_seed(2)
        losses = [step(binary_data) for _ in range(3)]
        weights.append((vae.state_dict(), [loss.loss if joint else loss for loss in losses]))
    assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing():
    value = pyro.param("loc", torch.tensor(1.0))

    def model(x):
        with pyro.plate("data", len(x)), pyro.validation_enabled(False):
            pyro.sample("x", pyro.distributions.Normal(pyro.param("loc") / 0, 1.0), obs=x)

    svi = SVI(model, lambda x: None, pv.Adam({"lr": 0.1}), Trace_ELBO())
    step = distributed.JointStep(svi, {"loc": value})
    assert math.isnan(step(torch.ones(2)).loss)
    assert value.item() == 1.0


def test_bytes_of_a_step(make_vae, binary_data):
    vae = make_vae()
    parameters = dict(vae.named_parameters())
    step = distributed.JointStep(SVI(vae.model, vae.guide, pv.Adam({"lr": 0.01}), Trace_ELBO()), parameters)
    assert step.bytes == 4 * (sum(p.numel() for p in parameters.values()) + len(parameters) + 5)


def test_refusals():
    svi = SVI(lambda x: None, lambda x: None, pv.Adam({"lr": 0.01}), Trace_ELBO())
    with pytest.raises(ValueError, match="parameters: expected some, on one device, got no parameters"):
        distributed.JointStep(svi, {})
    with (
        pytest.raises(ValueError, match="timeout: expected a number of seconds above 0"),
        distributed.processes(timeout=0),
    ):
        pass


def test_a_late_parameter_is_refused():
    first = pyro.param("first", torch.tensor(1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", pyro.distributions.Normal(first + pyro.param("late", torch.tensor(0.0)), 1.0), obs=x)

    step = distributed.JointStep(SVI(model, lambda x: None, pv.Adam({"lr": 0.1}), Trace_ELBO()), {"first": first})
    with pytest.raises(RuntimeError, match="a parameter appeared"):
        step(torch.ones(2))
