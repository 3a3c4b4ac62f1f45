"""The deep Markov model against the Kalman filter, and its ragged sequences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import Tensor, nn

import pyro_vae as pv

D, E, T = 2, 3, 6
LENGTHS = torch.tensor([6, 1, 4, 2, 5])


class LinearGaussian:
    """z_t ~ N(A z_{t-1}, Q), x_t ~ N(C z_t, R), z_0 = 0; its guide is the exact posterior."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.a, self.c = 0.7 * torch.linalg.qr(draw(D, D))[0], draw(E, D)
        self.q, self.r = torch.tensor([0.5, 1.5]).double(), torch.tensor([0.3, 0.8, 0.5]).double()
        self.x = draw(len(LENGTHS), T, E)
        self.dmm = pv.DeepMarkovModel(
            lambda z: dist.Normal(z @ self.a.T, self.q.sqrt()).to_event(1),
            lambda z: dist.Normal(z @ self.c.T, self.r.sqrt()).to_event(1),
            self.posterior,
            self.summary,
            latent_dim=D,
        ).double()

    def summary(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """The backward information filter: log p(x_t, ..., x_T | z_t) = -z' L z / 2 + z' m + const, as (L, m)."""
        lengths = torch.full((len(x),), x.shape[1]) if lengths is None else lengths
        precision, shift = torch.zeros(len(x), D, D).double(), torch.zeros(len(x), D).double()
        out = []
        for t in range(x.shape[1], 0, -1):
            # p(x_{t+1}, ... | z_t): z_{t+1} integrated out.
            gain = torch.linalg.inv(torch.diag(1 / self.q) + precision)
            inner = torch.diag(1 / self.q) - (1 / self.q)[:, None] * gain * (1 / self.q)
            shift = ((gain @ shift[..., None])[..., 0] / self.q) @ self.a
            precision = self.a.T @ inner @ self.a
            # and x_t joined.
            precision = precision + self.c.T @ torch.diag(1 / self.r) @ self.c
            shift = shift + (x[:, t - 1].nan_to_num() / self.r) @ self.c
            real = (t <= lengths)[:, None]
            precision, shift = precision * real[..., None], torch.where(real, shift, 0.0)
            out.append(torch.cat([precision.flatten(1), shift], -1))
        return torch.stack(out[::-1], 1)

    def posterior(self, joined: Tensor) -> Any:
        z, precision, shift = joined.split([D, D * D, D], -1)
        precision = precision.unflatten(-1, (D, D)) + torch.diag(1 / self.q)
        shift = shift + (z @ self.a.T) / self.q
        return dist.MultivariateNormal(
            torch.linalg.solve(precision, shift[..., None])[..., 0], precision_matrix=precision
        )

    def log_likelihood(self, x: Tensor, length: int) -> float:
        """The Kalman filter's, of one sequence."""
        mean, covariance, total = torch.zeros(D).double(), torch.zeros(D, D).double(), 0.0
        for t in range(length):
            mean, covariance = self.a @ mean, self.a @ covariance @ self.a.T + torch.diag(self.q)
            predicted = self.c @ covariance @ self.c.T + torch.diag(self.r)
            total += dist.MultivariateNormal(self.c @ mean, predicted).log_prob(x[t]).item()
            gain = covariance @ self.c.T @ torch.linalg.inv(predicted)
            mean, covariance = mean + gain @ (x[t] - self.c @ mean), covariance - gain @ self.c @ covariance
        return total


@pytest.mark.parametrize("filler", [0.0, math.nan, 1e30])
def test_bounds_of_ragged_sequences_are_the_kalman_filters(filler: float) -> None:
    """Every weight is log p(x) of the real steps, whatever stands behind them."""
    exact = LinearGaussian()
    x = exact.x.clone()
    for i, length in enumerate(LENGTHS):
        x[i, length:] = filler
    elbo, iwae = pv.bounds(exact.dmm.model, exact.dmm.guide, x, LENGTHS, num_particles=3)
    expected = torch.tensor([exact.log_likelihood(s, int(n)) for s, n in zip(exact.x, LENGTHS, strict=True)]).double()
    torch.testing.assert_close(elbo, expected)
    torch.testing.assert_close(iwae, expected)
    whole = pv.bounds(exact.dmm.model, exact.dmm.guide, exact.x, num_particles=3).elbo
    torch.testing.assert_close(whole[0], expected[0])
    assert (whole[1:] - expected[1:]).abs().min() > 0.1


def test_draws_of_the_guide_are_the_kalman_smoothers() -> None:
    """The smoothed mean of z_1 by least squares over the whole path."""
    exact = LinearGaussian()
    big = torch.zeros(T * D, T * D).double()
    shift = torch.zeros(len(LENGTHS), T * D).double()
    block = lambda t: slice(t * D, (t + 1) * D)  # noqa: E731
    inverse = torch.diag(1 / exact.q)
    for t in range(T):
        big[block(t), block(t)] += inverse + exact.c.T @ torch.diag(1 / exact.r) @ exact.c
        shift[:, block(t)] = (exact.x[:, t] / exact.r) @ exact.c
        if t:
            big[block(t - 1), block(t - 1)] += exact.a.T @ inverse @ exact.a
            big[block(t), block(t - 1)] -= inverse @ exact.a
            big[block(t - 1), block(t)] -= exact.a.T @ inverse
    mean = torch.linalg.solve(big, shift.T).T.unflatten(1, (T, D))
    variance = torch.linalg.inv(big).diagonal().unflatten(0, (T, D))
    pyro.set_rng_seed(0)
    n = 20_000
    with pyro.plate("draws", n, dim=-2):
        paths = exact.dmm.guide(exact.x)
    assert paths.shape == (n, len(LENGTHS), T, D)
    assert ((paths.mean(0) - mean).abs() <= 5 * (variance / n).sqrt()).all()
    torch.testing.assert_close(paths.var(0), variance.expand(len(LENGTHS), T, D), rtol=0.06, atol=0.0)


def test_forecasts_are_the_kalman_predictions() -> None:
    exact = LinearGaussian()
    pyro.set_rng_seed(0)
    n = 20_000
    x = exact.dmm.forecast(exact.x, LENGTHS, steps=3, num_samples=n)
    assert x.shape == (n, len(LENGTHS), 3, E)
    for i, length in enumerate(LENGTHS):
        mean, covariance = torch.zeros(D).double(), torch.zeros(D, D).double()
        for t in range(int(length) + 3):
            mean, covariance = exact.a @ mean, exact.a @ covariance @ exact.a.T + torch.diag(exact.q)
            predicted = exact.c @ covariance @ exact.c.T + torch.diag(exact.r)
            if t < length:
                gain = covariance @ exact.c.T @ torch.linalg.inv(predicted)
                mean = mean + gain @ (exact.x[i, t] - exact.c @ mean)
                covariance = covariance - gain @ exact.c @ covariance
            else:
                found = x[:, i, t - int(length)]
                assert ((found.mean(0) - exact.c @ mean).abs() <= 5 * (predicted.diagonal() / n).sqrt()).all()
                torch.testing.assert_close(found.var(0), predicted.diagonal(), rtol=0.06, atol=0.0)
    means = exact.dmm.forecast(exact.x, LENGTHS, steps=3, num_samples=n, mean=True)
    assert (means.var(0) < x.var(0)).all()


def make(cell: Any = nn.GRU) -> pv.DeepMarkovModel:
    return pv.DeepMarkovModel(
        pv.GatedTransition(D, hidden_dim=4),
        pv.BernoulliLikelihood(pv.MLP(D, E, hidden_dims=(4,))),
        pv.DiagonalNormalPosterior(pv.MLP(D + 4, 2 * D, hidden_dims=())),
        pv.BackwardRNN(E, hidden_dim=4, cell=cell),
        latent_dim=D,
    )


def sequences(n: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.bernoulli(torch.full((n, T, E), 0.4), generator=generator)
    lengths = torch.randint(1, T + 1, (n,), generator=generator)
    x[torch.arange(T) >= lengths[:, None]] = 0.0
    return x, lengths


@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM, nn.RNN])
def test_the_summary_reads_from_the_end_and_no_padding(cell: Any) -> None:
    torch.manual_seed(0)
    rnn = pv.BackwardRNN(E, hidden_dim=4, cell=cell)
    x, lengths = sequences()
    h = rnn(x, lengths)
    assert h.shape == (8, T, 4)
    for i, length in enumerate(lengths):
        alone = rnn(x[i : i + 1, :length])
        torch.testing.assert_close(h[i, :length], alone[0])
    late = x.clone()
    late[:, :2] = 1 - late[:, :2]  # what is past does not matter
    torch.testing.assert_close(rnn(late)[:, 2:], rnn(x)[:, 2:])
    assert not torch.allclose(rnn(late)[:, :2], rnn(x)[:, :2])


@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM, nn.RNN])
def test_one_graph_serves_all_lengths(cell: Any) -> None:
    """Compiled steps are Pyro's to the last bit, with a beta that rises, and one capture serves every batch."""
    ends = []
    for compiled in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        dmm = make(cell)
        optim = pv.Adam({"lr": 0.01})
        options = {"compile": "graph", "check_steps": 1, "on_refusal": "raise"}
        svi: Any = (
            pv.CompiledSVI(dmm.model, dmm.guide, optim, Trace_ELBO(), **options)
            if compiled
            else SVI(dmm.model, dmm.guide, optim, Trace_ELBO())
        )
        for step in range(5):
            svi.step(*sequences(seed=step), beta=torch.tensor(0.2 * (step + 1)))
        ends.append([p.detach().clone() for p in dmm.parameters()])
    assert svi.captures == 1
    if cell is nn.GRU:  # the others' fused kernels differ from their unfused form by rounding
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    else:
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("objective", [Trace_ELBO, pv.TraceSTL_ELBO, lambda: pv.TraceIWAE_ELBO(3)])
def test_padding_changes_nothing(objective: Any) -> None:
    """Neither the loss nor a gradient depends on what stands behind a sequence."""
    torch.manual_seed(0)
    dmm = make()
    x, lengths = sequences(4)
    found = []
    for filler in (0.0, 1.0, math.nan):
        padded = x.where(torch.arange(T)[:, None] < lengths[:, None, None], filler)
        pyro.set_rng_seed(1)
        dmm.zero_grad()
        loss = objective().loss_and_grads(dmm.model, dmm.guide, padded, lengths)
        found.append([torch.tensor(loss), *(p.grad.clone() for p in dmm.parameters())])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert math.isfinite(loss)
    assert any(g.any() for g in found[0])


@pytest.mark.slow
def test_fit_checkpoints_and_predictive(tmp_path: Path) -> None:
    x, lengths = sequences(20)
    ends = []
    for stop in (None, 2):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        dmm = make()
        svi = pv.CompiledSVI(dmm.model, dmm.guide, pv.Adam({"lr": 0.02}), Trace_ELBO(), compile="graph")
        data = pv.data.Batches(x, lengths, batch_size=10, shuffle=True)
        keep = [pv.Checkpoint(tmp_path / str(stop))]
        schedules = {"beta": pv.linear_warmup(2)}
        for epochs in (4,) if stop is None else (stop, 4):
            history = pv.fit(
                svi,
                data,
                epochs=epochs,
                validation=[(x, lengths)],
                schedules=schedules,
                callbacks=keep,
                progress=False,
                resume=tmp_path / str(stop) if epochs == 4 and stop else None,
            )
        ends.append([p.detach().clone() for p in dmm.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert history["validation_elbo"][-1] > history["validation_elbo"][0]
    draws = Predictive(dmm.model, guide=dmm.guide, num_samples=3)(x, lengths)
    assert draws["z_1"].shape == (3, 20, D)
    assert dmm.sample(4, steps=7).shape == (4, 7, E)
    assert dmm.sample(4, steps=7, mean=True).min() > 0


def test_samples_are_draws_of_the_model() -> None:
    exact = LinearGaussian()
    pyro.set_rng_seed(0)
    x = exact.dmm.sample(20_000, steps=2)
    covariance = torch.diag(exact.q)
    for t in range(2):
        expected = exact.c @ covariance @ exact.c.T + torch.diag(exact.r)
        torch.testing.assert_close(torch.cov(x[:, t].T), expected, rtol=0.05, atol=0.05)
        covariance = exact.a @ covariance @ exact.a.T + torch.diag(exact.q)


@pytest.mark.parametrize(
    ("x", "lengths", "match"),
    [
        (torch.zeros(3), None, r"x: expected sequences \(B, T, \*E\) with at least one step"),
        (torch.zeros(3, 0, E), None, r"x: expected sequences \(B, T, \*E\) with at least one step"),
        (torch.zeros(0, T, E), None, r"x: expected sequences \(B, T, \*E\) with at least one step"),
        (torch.zeros(3, T, E), torch.tensor([1, 0, 2]), r"lengths: expected numbers of steps from 1 to 6.*from 0 to 2"),
        (torch.zeros(3, T, E), torch.tensor([1, 7, 2]), r"lengths: expected numbers of steps from 1 to 6.*from 1 to 7"),
        (torch.zeros(3, T, E), torch.tensor([1, 2]), r"lengths: expected 3 rows as in x, got 2"),
        (torch.zeros(3, T, E), torch.ones(3), r"lengths: expected integers of shape \(3,\), got torch.float32"),
        (torch.zeros(3, T, E), torch.ones(3, 1, dtype=torch.long), r"lengths: expected integers of shape \(3,\)"),
        (torch.zeros(3, T, E), [1, 2, 3], r"lengths: expected a torch.Tensor, got list"),
        (torch.zeros(3, T, E + 1), None, r"x: expected sequences \(B, T, 3\) for BackwardRNN"),
        (torch.full((3, T, E), 0.5), torch.tensor([1, 2, 3]), r"x: expected values in \{0, 1\}"),
    ],
)
def test_bad_sequences_are_refused(x: Any, lengths: Any, match: str) -> None:
    dmm = make()

    def run() -> None:
        dmm.guide(x, lengths)
        poutine.trace(dmm.model).get_trace(x, lengths).compute_log_prob()

    with pytest.raises((ValueError, TypeError), match=match):
        run()


def test_a_part_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="summary: expected a module, got None"):
        pv.DeepMarkovModel(nn.Identity(), nn.Identity(), nn.Identity(), None, latent_dim=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size: expected the number of all sequences, at least"):
        make().model(*sequences(), size=3)


@pytest.mark.parametrize("bad", [0, -1, 6])
def test_a_length_outside_is_never_trained_on(bad):
    torch.manual_seed(0)
    dmm = pv.DeepMarkovModel(
        pv.GatedTransition(2, hidden_dim=4),
        pv.BernoulliLikelihood(nn.Linear(2, 3)),
        pv.DiagonalNormalPosterior(nn.Linear(2 + 4, 4)),
        pv.BackwardRNN(3, hidden_dim=4),
        latent_dim=2,
    )
    svi = pv.CompiledSVI(dmm.model, dmm.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), compile="graph", check_steps=0)
    x, lengths = torch.ones(4, 5, 3), torch.tensor([5, 1, 3, 2])
    for _ in range(3):
        assert math.isfinite(svi.step(x, lengths))
    before = [p.clone() for p in dmm.parameters()]
    with pytest.warns(UserWarning, match="the step was not applied"):
        assert math.isnan(svi.step(x, torch.tensor([5, bad, 3, 2])))
    assert all(torch.equal(p, q) for p, q in zip(before, dmm.parameters(), strict=True))
    assert math.isfinite(svi.step(x, lengths))
    # At the first call, in fit too, the error says what is wrong.
    dmm.name = "another"
    svi = pv.CompiledSVI(dmm.model, dmm.guide, pv.Adam({"lr": 1e-2}), Trace_ELBO(), compile="graph")
    with pytest.raises(ValueError, match=r"lengths: expected numbers of steps from 1 to 5"):
        pv.fit(svi, [(x, torch.tensor([5, bad, 3, 2]))], epochs=1, progress=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_lengths_may_be_of_any_integer_type(dtype) -> None:
    """Also where a sequence is longer than the type has numbers."""
    pyro.set_rng_seed(0)
    dmm, x = make(), sequences(3)[0][:, :5]
    lengths = torch.tensor([5, 2, 1])

    def results(lengths: Tensor) -> list[Tensor]:
        pyro.set_rng_seed(1)
        loss = torch.tensor(Trace_ELBO().loss(dmm.model, dmm.guide, x, lengths))
        return [loss, dmm.forecast(x, lengths, steps=2, num_samples=3)]

    for ours, expected in zip(results(lengths.to(dtype)), results(lengths), strict=True):
        assert torch.equal(ours, expected)
    long = torch.zeros(1, 200, *x.shape[2:])
    dmm.forecast(long, torch.tensor([100], dtype=dtype), steps=1, num_samples=1)


def test_global_variables_are_refused_by_name() -> None:
    dmm = make()
    story = pv.with_globals(dmm.model, lambda: {"w": torch.zeros(())})
    with pytest.raises(TypeError, match="lengths: expected a tensor, got a dict, as of global variables"):
        story(sequences(2)[0])
    with pytest.raises(TypeError, match=r"after 2 positional arguments, got DeepMarkovModel\.model, which"):
        story(*sequences(2))
