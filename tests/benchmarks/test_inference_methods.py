"""The benchmark of inference: exact methods have no error, gaps are what they are said to be, and it writes a table."""

import argparse
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("inference_methods")


@pytest.fixture
def needed(methods: Any) -> Any:
    return importlib.import_module("draws_needed")


@pytest.fixture
def problem(methods: Any) -> Any:
    return methods.problem(3, argparse.Namespace(data=40, steps=20))


def test_coordinate_ascent_has_the_approximation_gap_alone(methods, problem) -> None:
    found = methods.coordinate_ascent(problem)
    errors = methods.errors(problem, problem.x, found, diagonal=True)
    assert errors["mean"] < 1e-4
    assert errors["approximation"] > 0.02
    assert errors["rest"] == pytest.approx(0.0, abs=1e-4)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(found.mean, found.covariance))

    elbo = pv.elbo(pv.log_weights(problem.ppca.model, guide, problem.x, num_particles=2000))
    lost = (problem.ppca.log_likelihood(problem.x) - elbo).mean().item()
    assert errors["nats"] == pytest.approx(lost, abs=0.02)


def test_errors_are_in_the_stated_units(methods, problem) -> None:
    exact = problem.ppca.encode(problem.x)
    covariance = exact.covariance_matrix
    off = methods.Found(exact.mean + covariance.diagonal(dim1=-2, dim2=-1).sqrt(), 2 * covariance)
    errors = methods.errors(problem, problem.x, off, diagonal=False)
    assert errors["mean"] == pytest.approx(1.0, rel=1e-4)
    assert errors["covariance"] == pytest.approx(1.0, rel=1e-4)
    assert methods.errors(problem, problem.x, methods.Found(exact.mean, covariance), False)["nats"] < 1e-5


def test_draws_have_their_moments(methods, problem) -> None:
    """Of importance resampling, from a guide that is the exact posterior: the moments of 4,000 draws of it."""
    pyro.set_rng_seed(0)
    found = methods.importance_resampling(problem, problem.ppca, 4000)
    errors = methods.errors(problem, problem.x, found, diagonal=False)
    # Resampling draws draws: the variance of a mean is twice 1 / 4000.
    assert errors["mean"] == pytest.approx(math.sqrt(2 / 4000), rel=0.2)
    assert errors["covariance"] < 0.06


def test_the_second_moment_of_weights_is_that_of_quadrature(needed) -> None:
    p, q = (dist.MultivariateNormal(torch.tensor([m]), torch.tensor([[v]])) for m, v in ((0.5, 0.4), (0.0, 0.9)))
    z = torch.linspace(-12, 12, 20_001)[:, None]
    integral = torch.trapezoid((2 * p.log_prob(z) - q.log_prob(z)).exp(), z[:, 0])
    assert needed.log_second_moment(p, q).item() == pytest.approx(integral.log().item(), abs=1e-3)
    assert needed.log_second_moment(q, dist.MultivariateNormal(q.mean, q.covariance_matrix / 3)).item() == math.inf


def test_the_exact_posterior_needs_one_draw_and_the_prior_as_many_as_the_formula_says(
    methods, needed, monkeypatch
) -> None:
    pyro.set_rng_seed(0)
    monkeypatch.setattr(needed, "REPETITIONS", 20)
    ppca, x = methods.problem(1, argparse.Namespace(data=40, steps=1))[:2]
    x, log_px = x[:10], ppca.log_likelihood(x[:10])
    assert needed.draws_needed(ppca.model, ppca.guide, x, log_px, 8) == 1

    def from_the_prior(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", ppca.prior())

    prior = dist.MultivariateNormal(torch.zeros(1), torch.eye(1))
    formula = (needed.log_second_moment(ppca.encode(x), prior).exp() - 1).mean().item() / needed.TOLERANCE**2
    draws = needed.draws_needed(ppca.model, from_the_prior, x, log_px, 2**14)
    assert draws is not None
    assert 0.5 < draws / formula < 4  # powers of two, and a first-order formula
    assert needed.draws_needed(ppca.model, from_the_prior, x, log_px, 16) is None


@pytest.mark.slow
def test_the_commands_write_their_tables(methods, needed, tmp_path, monkeypatch) -> None:
    flags = ["inference_methods.py", "--output-dir", str(tmp_path), "--data", "30", "--latent-dim", "2"]
    monkeypatch.setattr("sys.argv", [*flags, "--steps", "20", "--draws", "150"])
    methods.main()
    rows = json.loads((tmp_path / "inference_methods.json").read_text())
    assert (tmp_path / "inference_methods.md").read_text().count("\n") == len(rows) + 2
    assert all(row["nats"] >= row["approximation"] - 1e-4 >= -1e-4 for row in rows)
    by_name = {(row["method"], row["family"]): row for row in rows}
    assert by_name["exact posterior (`ProbabilisticPCA`)", "full"]["nats"] < 1e-4
    before, after = (by_name[f"encoder{then}, new data", "diagonal"] for then in ("", ", then `refine`"))
    assert after["gain"] == pytest.approx(before["nats"] - after["nats"], rel=0.1)
    assert by_name["NUTS", "draws"]["nats"] < 0.2

    flags = ["draws_needed.py", "--output-dir", str(tmp_path), "--latent-dims", "1", "2", "--steps", "20"]
    monkeypatch.setattr("sys.argv", [*flags, "--data", "30", "--most-draws", "64"])
    needed.main()
    assert "| 2 | above 64 |" in (tmp_path / "draws_needed.md").read_text()
