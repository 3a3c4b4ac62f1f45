"""The script that runs Pyro's own tests tells equal, left, different, crashed and failing tests apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FOREIGN = """
import os

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO


def guide(x):
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))


def model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def branching(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if z > 0:
        z = 2 * z
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def new(model=model):
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())


def captured():
    return type(new()).__mro__[1].__name__ != "SVI"


def test_equal():
    svi = new()
    assert sum(svi.step(torch.ones(3)) for _ in range(5)) > 0


def test_direct():
    elbo = Trace_ELBO(num_particles=2)
    pyro.param("loc", torch.tensor(0.1))
    for _ in range(3):
        elbo.loss_and_grads(model, guide, torch.ones(3))
    assert pyro.param("loc").grad.item() < -3  # about -2 for each of the three


def test_left():
    svi = new(branching)
    for _ in range(5):
        svi.step(torch.ones(3))


def test_different():
    svi = new()
    for i in range(5):
        svi.step(torch.ones(3) * (2 if captured() and i == 4 else 1))


def test_crashed():
    new().step(torch.ones(3))
    if captured():
        raise TypeError("a planted fault")


def test_dies():
    new().step(torch.ones(3))
    if captured():
        os._exit(3)


def test_fails_anyway():
    new().step(torch.ones(3))
    assert False


def test_unrelated():
    pass
"""


@pytest.mark.slow
def test_every_verdict_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "checkout" / "tests").mkdir(parents=True)
    (tmp_path / "checkout" / "tests" / "test_foreign.py").write_text(FOREIGN)
    command = [sys.executable, str(ROOT / "benchmarks" / "pyro_tests.py"), str(tmp_path / "checkout")]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "out"), "--seconds", "60"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    rows = json.loads((tmp_path / "out" / "pyro_tests.json").read_text())
    found = {row["test"].rpartition("::test_")[2]: row for row in rows}
    assert {name: row["verdict"] for name, row in found.items()} == {
        "equal": "equal",
        "direct": "equal",
        "left": "left to Pyro",
        "different": "different",
        "crashed": "crashed",
        "dies": "crashed",
        "fails_anyway": "fails in plain Pyro too",
    }
    assert found["equal"]["captures"] == found["direct"]["captures"] == 1
    assert "if z > 0" in found["left"]["message"]
    assert "planted" in found["crashed"]["message"]
    assert "ended with 3" in found["dies"]["message"]
    assert "3 of 6 equal or left to Pyro (50.0 %)" in done.stdout
