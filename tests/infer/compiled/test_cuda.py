"""On a GPU: the same as Pyro, one CUDA graph a step, and no step that waits for the device."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.utils._pytree import tree_map

import pyro_vae as pv
from pyro_vae.infer.compiled import backend
from tests.helpers import small_vae
from tests.helpers.programs import PROGRAMS
from tests.strangers.runner import AUDIT, CAPTURED, NOTICED, ROUNDED, outcome
from tests.strangers.test_strangers import PROGRAMS as STRANGERS  # filled by the modules that it imports

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

DEVICE = "cuda"
EVERY_STEP: dict[str, Any] = {"compile_after": 1, "check_steps": 0}


@pytest.fixture
def vae() -> pv.VAE:
    return small_vae(4, elements=12, hidden_dims=(32,)).to(DEVICE)


@pytest.fixture
def x() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(512, 12, generator=generator) < 0.3).float().to(DEVICE)


@pytest.fixture
def no_waiting() -> Iterator[Any]:
    """A callback that makes torch raise where a step between two given ones waits for the device."""

    class NoWaiting(pv.Callback):
        def __init__(self, first: int, last: int) -> None:
            self.first, self.last, self.reached = first, last, 0

        def step_end(self, run: pv.Run) -> None:
            if run.step == self.first:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch calls this mode a prototype
                    torch.cuda.set_sync_debug_mode("error")
            if run.step == self.last:
                torch.cuda.set_sync_debug_mode("default")
            self.reached = run.step

    yield NoWaiting
    torch.cuda.set_sync_debug_mode("default")


def svi_of(vae: pv.VAE, svi: Any = pv.CompiledSVI, loss: Any = None, **options: Any) -> Any:
    return svi(vae.model, vae.guide, pv.Adam({"lr": 0.01}), loss or Trace_ELBO(), **options)


def train(svi: Any, x: Tensor, steps: int = 20) -> list[float]:
    pyro.set_rng_seed(5)
    return [float(svi.step(x)) for _ in range(steps)]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({"compile": "graph"}, 0.0), ({"compile": True}, 1e-4), ({"compile": True, "precision": "bf16"}, 2e-2)],
)
def test_training_ends_where_pyros_ends(vae: pv.VAE, x: Tensor, options: Any, tolerance: float) -> None:
    other = copy.deepcopy(vae)
    expected = train(svi_of(vae, SVI), x)
    pyro.clear_param_store()
    svi = svi_of(other, **EVERY_STEP, **options)
    assert train(svi, x) == pytest.approx(expected, rel=tolerance, abs=0)
    assert svi.captures == 1
    for p, q in zip(vae.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=tolerance, atol=tolerance)


def test_a_step_is_one_cuda_graph(vae: pv.VAE, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = []
    replay = backend._CudaGraph.__call__
    monkeypatch.setattr(backend._CudaGraph, "__call__", lambda self, *t: replays.append(1) or replay(self, *t))
    svi = svi_of(vae, **EVERY_STEP)
    losses = train(svi, x, 40)
    assert len(replays) >= 38
    assert len(set(losses)) == 40  # each replay draws new numbers


@pytest.mark.parametrize("loss", [Trace_ELBO, pv.TraceSTL_ELBO, lambda: pv.TraceIWAE_ELBO(num_particles=4)])
def test_steps_of_fit_do_not_wait_for_the_device(vae: pv.VAE, x: Tensor, loss: Any, no_waiting: Any) -> None:
    svi = svi_of(vae, loss=loss(), **EVERY_STEP)
    watching = no_waiting(20, 80)  # between two readings of the losses, which are read together
    pv.fit(
        svi,
        pv.data.Batches(x, batch_size=4, seed=0),
        epochs=1,
        callbacks=[watching],
        schedules={"beta": pv.linear_warmup(1)},
        progress=False,
    )
    assert watching.reached == 128


def test_a_step_of_fit_launches_one_graph_and_reads_nothing_back(vae: pv.VAE, x: Tensor) -> None:
    profiler = torch.profiler.profile(acc_events=True)

    class Profile(pv.Callback):
        def step_end(self, run: pv.Run) -> None:
            if run.step == 20:
                profiler.start()
            if run.step == 80:
                profiler.stop()

    pv.fit(
        svi_of(vae, **EVERY_STEP),
        pv.data.Batches(x, batch_size=4, seed=0),
        epochs=1,
        callbacks=[Profile()],
        progress=False,
    )
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts.get("cudaGraphLaunch") == 60, counts
    assert not [name for name in counts if "DtoH" in name or name == "cudaStreamSynchronize"], counts
    assert counts.get("cudaDeviceSynchronize", 0) <= 2, counts  # the profiler's own


def test_steps_that_wait_are_noticed(vae: pv.VAE, x: Tensor, no_waiting: Any) -> None:
    watching = no_waiting(20, 80)
    with pytest.raises(RuntimeError, match="synchroniz"):
        pv.fit(svi_of(vae, SVI), x.split(4), epochs=1, callbacks=[watching], progress=False)


@pytest.mark.parametrize("compile", [False, "graph", True])
def test_a_step_that_is_not_finite_changes_nothing(vae: pv.VAE, x: Tensor, compile: Any) -> None:
    svi = svi_of(vae, compile=compile, **EVERY_STEP)
    train(svi, x, 5)
    before = copy.deepcopy(vae.state_dict())
    bad = x.clone()
    bad[0, 0] = float("nan")
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="not applied|NaN"):
        svi.step(bad)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    train(svi, x, 1)
    assert not torch.equal(before["posterior.network.layers.0.weight"], vae.posterior.network.layers[0].weight)


@pytest.mark.parametrize("compile", ["graph", True])
def test_a_resumed_run_ends_where_the_whole_one_ends(x: Tensor, tmp_path: Path, compile: Any) -> None:
    def run(epochs: int, resume: Any = None) -> dict[str, Tensor]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = small_vae(4, elements=12, hidden_dims=(32,)).to(DEVICE)
        pv.fit(
            svi_of(vae, compile=compile, compile_after=10),
            pv.data.Batches(x, batch_size=64, seed=0),
            epochs=epochs,
            callbacks=[pv.Checkpoint(tmp_path / str(resume is None and epochs == 4), every=0)],
            resume=resume,
            progress=False,
        )
        return copy.deepcopy(vae.state_dict())

    whole = run(4)
    run(2)
    resumed = run(4, resume=tmp_path / "False")
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_bounds_are_those_of_the_cpu(vae: pv.VAE, x: Tensor) -> None:
    on_gpu = pv.bounds(vae.model, vae.guide, x, num_particles=500)
    vae.cpu()
    on_cpu = pv.bounds(vae.model, vae.guide, x.cpu(), num_particles=500)
    assert float(on_gpu.elbo.mean()) == pytest.approx(float(on_cpu.elbo.mean()), abs=0.02)
    assert float(on_gpu.iwae.mean()) == pytest.approx(float(on_cpu.iwae.mean()), abs=0.02)


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")  # what Pyro says of frozen parameters
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_of_the_tests_ends_where_pyros_ends(name: str) -> None:
    program = PROGRAMS[name]

    def run(svi_class: Any, **options: Any) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        with torch.device(DEVICE):
            model, guide = program.make()
            args = tree_map(lambda a: a.to(DEVICE) if isinstance(a, Tensor) else a, program.args)
            svi = svi_class(model, guide, pv.Adam({"lr": 0.01}), program.loss(), **options)
            pyro.set_rng_seed(5)
            return [float(svi.step(*args, **program.kwargs)) for _ in range(8)]

    expected = run(SVI)
    assert run(pv.CompiledSVI, compile=True, **EVERY_STEP) == pytest.approx(expected, rel=1e-4)


# Programs whose data must be on the host: for numpy, scipy, packed sequences or a generator of the CPU's.
ON_THE_HOST = {"a_numpy_array", "values_by_numpy", "values_by_scipy", "packed_sequences", "a_generator_of_torch"}
# Where a GPU's operations are others: eigenvalues to the last bit, no look at labels or for a failed factorization.
OTHERWISE = {"eigenvalues": CAPTURED, "one_hot_of_known_width": CAPTURED, "an_exception_on_a_value": AUDIT}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STRANGERS.keys() - ON_THE_HOST))
def test_a_stranger_ends_where_pyros_ends(name: str) -> None:
    entry = STRANGERS[name]
    with torch.device(DEVICE):
        got, words = outcome(entry, compile="graph", tolerance=1e-4)
    expected = OTHERWISE.get(name, CAPTURED if entry.outcome == NOTICED else entry.outcome)
    # Without cuDNN's fused kernel, recurrent networks differ by a rounding.
    assert got == expected or (name in ("gru", "rnn") and got == ROUNDED), words
