"""The benchmark of quadrants: the tutorial's model, and the script in its short form."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch

import pyro_vae as pv

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "quadrants.py"


def test_the_tutorials_model_has_the_density_that_it_is_said_to_have():
    """log p(x, z|y) - log q(z|x, y), by hand; the networks see the pixels in their places."""
    pyro.set_rng_seed(0)
    found = runpy.run_path(str(SCRIPT))
    seen, rest = found["EXAMPLE"]["quadrants"](1, 4, 4)
    method = found["Tutorial"](seen, rest, d=2, hidden=5)
    images = torch.rand(3, 16)
    x, y = images[:, rest], images[:, seen]
    assert torch.equal(method.whole(x, y), images)
    guess = torch.full_like(images, -1.0)
    guess[:, seen] = y
    guess[:, rest] = method.guess(guess)[:, rest].sigmoid()
    trace = pyro.poutine.trace(method.guide).get_trace(x, y)
    z = trace.nodes["z"]["value"]

    def normal(moments):
        return torch.distributions.Normal(moments[:, :2], moments[:, 2:].exp())

    p = method.decoder(z).sigmoid()[:, rest]
    log_x = (x * p.log() + (1 - x) * (1 - p).log()).sum(1)
    log_p = log_x + normal(method.prior(guess)).log_prob(z).sum(1)
    log_q = normal(method.posterior(images)).log_prob(z).sum(1)
    replayed = pyro.poutine.trace(pyro.poutine.replay(method.model, trace)).get_trace(x, y)
    torch.testing.assert_close(replayed.log_prob_sum(), log_p.sum())
    torch.testing.assert_close(trace.log_prob_sum(), log_q.sum())
    assert pv.log_weights(method.model, method.guide, x, y, num_particles=2).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("pixels", ["binary", "grey"])
def test_it_writes_rows_and_a_table(tmp_path, pixels):
    flags = ["--dataset", "digits", "--quadrants", "3", "--particles", "5", "--pixels", pixels, "--no-compile"]
    small = ["--max-epochs", "2", "--latent-dim", "5", "--hidden", "20", "--example-flags=--smoke"]
    command = [sys.executable, str(SCRIPT), "--output-dir", str(tmp_path), *flags, *small]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    rows = json.loads((tmp_path / "quadrants.json").read_text())
    assert [row["method"] for row in rows] == ["tutorial", "example"]
    assert all(-12 < row["elbo"] < row["log_likelihood"] < 0 for row in rows)  # 16 fair coins: -11.1
    assert rows[1]["gain"] == pytest.approx(rows[1]["log_likelihood"] - rows[0]["log_likelihood"], abs=1e-4)
    assert (tmp_path / "quadrants.md").read_text().count("\n") == 4
    subprocess.run(command, check=True, timeout=60, capture_output=True)  # from the files
    assert json.loads((tmp_path / "quadrants.json").read_text()) == rows
