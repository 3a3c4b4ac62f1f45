"""NaN, infinity and bad data: found before they reach a weight, and named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from tiny import images, make, parameters_of, same
from torch.utils.data import DataLoader, Dataset

import pyro_vae as pv
from pyro_vae.infer import Adam, CompiledSVI
from pyro_vae.train import Callback, Checkpoint, LearningRate, fit, read_checkpoint
from pyro_vae.train.resume.learning_rates import multiply_learning_rates, param_groups


def graph(*args: Any) -> CompiledSVI:
    return CompiledSVI(*args, compile="graph")


KINDS = {
    "plain Pyro": lambda **k: make(**k),
    "one optimiser": lambda **k: make(optim=Adam({"lr": 1e-2}), **k),
    "compiled": lambda **k: make(optim=Adam({"lr": 1e-2}), svi=graph, **k),
}


@pytest.fixture(params=KINDS)
def kind(request: Any) -> Any:
    return KINDS[request.param]


class Poison(Callback):
    """A noise of the world that turns a gradient (or the loss) into NaN at one step, as a rare overflow does."""

    def __init__(self, m: Any, step: int, times: int = 10**9, where: str = "gradient") -> None:
        self.m, self.step, self.left, self.where = m, step, times, where
        m.vae.likelihood.network.output.register_forward_hook(self._hook)
        self.run: Any = None

    @property
    def on(self) -> bool:
        return self.run is not None and self.run.step + 1 == self.step and self.left > 0

    def start(self, run: Any) -> None:
        self.run = run

    def step_end(self, run: Any) -> None:
        self.before = parameters_of(self.m.vae) if self.on else None

    def _hook(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        if not self.on:
            return output
        if torch.is_grad_enabled():
            self.left -= 1
        if self.where == "loss":
            return output * float("nan")
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("nan"))
        return output


@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_found_before_it_reaches_a_weight(where: str, tmp_path: Path) -> None:
    m = make()
    poison = Poison(m, step=6, where=where)
    with pytest.raises(FloatingPointError) as caught:
        fit(m.svi, images().split(16), epochs=3, callbacks=[poison, Checkpoint(tmp_path, every=0)], progress=False)
    text = str(caught.value)
    assert "step 6 (epoch 2, batch 2)" in text
    assert "its update was not applied" in text
    assert "Likely cures" in text
    if where == "gradient":
        assert "gradient of 'vae$$$likelihood.network" in text
        assert "gradient of 'vae$$$posterior" in text
    else:
        assert "log-density of site 'x' in the model: NaN in 16 of 16 elements" in text
    assert same(poison.before, parameters_of(m.vae))
    assert read_checkpoint(tmp_path / "step-0000000005.pt")["step"] == 5


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_the_error_names_site_and_parameter() -> None:
    # A scale that the optimiser drives to 0 underflows: log-density plus infinity.
    def model(x: torch.Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale.sqrt(), validate_args=False), obs=x)

    svi = SVI(model, lambda x: None, pyro.optim.SGD({"lr": 0.5}), Trace_ELBO())
    with pytest.raises(FloatingPointError, match=r"site 'x' in the model: NaN") as caught:
        fit(svi, [torch.zeros(10)], epochs=50, progress=False)
    assert "gradient of 'scale'" in str(caught.value) or "log-density" in str(caught.value)
    assert bool(pyro.param("scale").isfinite())


def test_numbers_that_run_off_are_named_also_where_pyro_finds_them() -> None:
    m = make(optim=pyro.optim.SGD({"lr": 1e12}))
    with pytest.raises((FloatingPointError, ValueError), match="epoch"):
        fit(m.svi, images().split(16), epochs=20, progress=False)
    assert all(bool(value.isfinite().all()) for value in parameters_of(m.vae).values())


def test_restore_goes_back_halves_the_rate_and_goes_on(tmp_path: Path) -> None:
    m = make()
    poison = Poison(m, step=6, times=1)
    with pytest.warns(RuntimeWarning, match=r"Back to step 5 .*0\.5 times the learning rate \(restore 1 of 3\)"):
        history = fit(m.svi, images().split(16), epochs=3, callbacks=[poison], on_nonfinite="restore", progress=False)
    assert history["steps"] == [4, 8, 12]
    assert {group["lr"] for group in param_groups(m.svi.optim)} == {0.005}
    assert all(bool(value.isfinite().all()) for value in parameters_of(m.vae).values())


def test_restore_with_a_schedule_keeps_the_lower_rate() -> None:
    m = make(optim=Adam({"lr": 1e-2}))
    poison = Poison(m, step=6, times=1)
    with pytest.warns(RuntimeWarning, match="restore 1 of 3"):
        fit(
            m.svi,
            images().split(16),
            epochs=3,
            callbacks=[poison, LearningRate(lambda t: 0.1)],
            on_nonfinite="restore",
            progress=False,
        )
    assert [group["lr"] for group in param_groups(m.svi.optim)] == pytest.approx([0.0005])


SCHEDULERS: dict[str, Any] = {
    "ExponentialLR": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: torch.optim.lr_scheduler.ConstantLR(o, total_iters=5),
    "LinearLR": lambda o: torch.optim.lr_scheduler.LinearLR(o, total_iters=9),
    "PolynomialLR": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 12, 2.0),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: torch.optim.lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12, eta_min=0.01),
    "CosineAnnealingWarmRestarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 5, eta_min=0.01),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=30),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=4, cycle_momentum=False),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.ConstantLR(o, 0.5, 4), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[7],
    ),
    "ChainedScheduler": lambda o: torch.optim.lr_scheduler.ChainedScheduler(
        [torch.optim.lr_scheduler.ConstantLR(o, 0.5, 8), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


@pytest.mark.filterwarnings("ignore:.*optimizer.step")
@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_halved_learning_rates_stay_halved_under_every_scheduler_of_torch(name: str) -> None:
    def rates(halved: bool) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
        scheduler = SCHEDULERS[name](optimizer)
        found = []
        for step in range(20):
            if step == 5 and halved:
                multiply_learning_rates(SimpleNamespace(param_groups=optimizer.param_groups, scheduler=scheduler), 0.5)
            scheduler.step()
            found.append(optimizer.param_groups[0]["lr"])
        return found

    whole, half = rates(False), rates(True)
    assert half[:5] == whole[:5]
    assert half[5:] == pytest.approx([rate / 2 for rate in whole[5:]], rel=1e-9)


@pytest.mark.parametrize("whose", ["Pyro", "ours"])
def test_restore_with_a_scheduler_keeps_the_lower_rate(whose: str) -> None:
    if whose == "Pyro":
        optim: Any = pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-3}, "gamma": 0.5})
        callbacks: list[Any] = [LearningRate()]
    else:
        optim = Adam({"lr": 1e-3}, scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 0.5 ** (t // 4)))
        callbacks = []
    m = make(optim=optim)
    callbacks.append(Poison(m, step=6, times=1))
    with pytest.warns(RuntimeWarning, match="restore 1 of 3"):
        fit(m.svi, images().split(16), epochs=3, callbacks=callbacks, on_nonfinite="restore", progress=False)
    assert [group["lr"] for group in param_groups(m.svi.optim)] == pytest.approx(
        [1e-3 * 0.5**3 * 0.5] * len(list(param_groups(m.svi.optim)))
    )


class Breaks(Callback):
    """Makes a parameter NaN at the end of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def epoch_end(self, run: Any) -> None:
        if run.epoch == self.epoch:
            next(iter(run.parameters.values())).data.view(-1)[0] = float("nan")


class LastUpdate(pyro.optim.PyroOptim):
    """SGD whose last update makes a parameter NaN."""

    def __init__(self, step: int) -> None:
        super().__init__(torch.optim.SGD, {"lr": 1e-3})
        self.calls, self.bad = 0, step

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        super().__call__(params, *args, **kwargs)
        self.calls += 1
        if self.calls == self.bad:
            next(iter(params)).data.view(-1)[0] = float("nan")


@pytest.mark.parametrize("epoch", [2, 3])
def test_a_parameter_that_a_callback_makes_nan_is_named_and_not_saved(epoch: int, tmp_path: Path) -> None:
    m = make()
    callbacks = [Breaks(epoch), Checkpoint(tmp_path, every=0)]
    with pytest.raises(
        FloatingPointError, match=rf"after step {4 * epoch}, not finite: parameter 'vae\$\$\$.*callback"
    ):
        fit(m.svi, images().split(16), epochs=3, callbacks=callbacks, progress=False)
    for path in tmp_path.glob("*.pt"):
        assert all(bool(value.isfinite().all()) for value in read_checkpoint(path)["modules"][0].values())
    assert max(tmp_path.glob("step-*.pt")).name == f"step-{4 * epoch:010d}.pt"  # of the step's end


def test_a_parameter_that_the_last_update_makes_nan_is_named_and_not_saved(tmp_path: Path) -> None:
    m = make(optim=LastUpdate(12))
    with pytest.raises(FloatingPointError, match=r"after step 12, not finite: parameter 'vae\$\$\$"):
        fit(m.svi, images().split(16), epochs=3, callbacks=[Checkpoint(tmp_path, every=0)], progress=False)
    assert max(tmp_path.glob("step-*.pt")).name == "step-0000000011.pt"


def test_a_parameter_that_the_last_update_makes_nan_is_restored() -> None:
    m = make(optim=LastUpdate(12))
    with pytest.warns(RuntimeWarning, match="after step 12, not finite.*Back to step 9"):
        history = fit(m.svi, images().split(16), epochs=3, on_nonfinite="restore", progress=False)
    assert history["steps"] == [4, 8, 12]
    assert all(bool(value.isfinite().all()) for value in parameters_of(m.vae).values())


def test_restore_gives_up() -> None:
    m = make()
    with (
        pytest.warns(RuntimeWarning, match="restore") as warned,
        pytest.raises(FloatingPointError, match="Given up after 3 restores"),
    ):
        fit(m.svi, images().split(16), epochs=3, callbacks=[Poison(m, step=6)], on_nonfinite="restore", progress=False)
    assert len([w for w in warned if "restore" in str(w.message)]) == 3


def test_restore_uses_the_last_checkpoint(tmp_path: Path) -> None:
    m = make()
    callbacks = [Poison(m, step=8, times=1), Checkpoint(tmp_path, every=0)]
    with pytest.warns(RuntimeWarning, match="Back to step 8 "):
        fit(m.svi, images().split(16), epochs=3, callbacks=callbacks, on_nonfinite="restore", progress=False)


BAD = {
    "NaN": (lambda x: x.index_fill(0, torch.tensor([4]), float("nan")), r"NaN in 6 of 96 elements \(rows 4\)"),
    "infinity": (
        lambda x: x.index_fill(0, torch.tensor([4]), float("inf")),
        r"infinity in 6 of 96 elements \(rows 4\)",
    ),
    "grey": (lambda x: x * 0.5, r"x: expected values in \{0, 1\} for BernoulliLikelihood, got 0"),
    "integers": (lambda x: x.to(torch.uint8), "expected floating-point values"),
    "doubles": (lambda x: x.double(), r"float64"),
    "another shape": (lambda x: x[:, :5], r"expected shape \(\*, 6\)"),
    "empty": (lambda x: x[:0], "at least one datum"),
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize(("epoch", "batch"), [(1, 1), (2, 2)])
def test_bad_data_in_any_batch(fault: str, epoch: int, batch: int, kind: Any, tmp_path: Path) -> None:
    change, message = BAD[fault]

    class Data:
        def __init__(self) -> None:
            self.epoch = 0

        def __iter__(self) -> Any:
            self.epoch += 1
            for number, x in enumerate(images(64).split(16), 1):
                yield change(x) if (self.epoch, number) == (epoch, batch) else x

    m = kind()
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        fit(m.svi, Data(), epochs=2, callbacks=[Checkpoint(tmp_path, every=0)], progress=False)
    assert f"(in train, epoch {epoch}, batch {batch}, counted from 1)" in str(caught.value)
    assert all(bool(value.isfinite().all()) for value in parameters_of(m.vae).values())
    steps = 4 * (epoch - 1) + batch - 1
    files = sorted(tmp_path.glob("step-*.pt"))
    assert [int(path.stem[5:]) for path in files] == [step for step in (steps - 1, steps) if step > 0]
    if files:
        saved = read_checkpoint(files[-1])["modules"][0]
        assert same(saved, parameters_of(m.vae))


class Failing(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 20:
            raise ValueError("image 20 is torn")
        return images(32)[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_workers_exception_keeps_its_message(workers: int) -> None:
    loader = DataLoader(Failing(), batch_size=8, num_workers=workers)
    with pytest.raises(ValueError, match="image 20 is torn") as caught:
        fit(make().svi, loader, epochs=1, progress=False)
    assert "epoch 1, batch 3" in str(caught.value)


def test_bad_validation_data_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected values in \{0, 1\}(.|\n)*in validation"):
        fit(make().svi, images().split(16), epochs=1, validation=[images(), images() * 0.5], progress=False)


def test_losses_on_an_accelerator_are_read_many_at_a_time() -> None:
    """Stands for a GPU: a loss is a tensor elsewhere, which must not be read every step; a bad one is named later."""

    class Elsewhere(torch.Tensor):
        """A loss on a device that is slow to answer: it counts how often it is read."""

        device = torch.device("meta")

        def double(self) -> Any:
            reads.append(1)
            return torch.Tensor.double(self.as_subclass(torch.Tensor))

        def __float__(self) -> float:
            raise AssertionError("read at once")

    class Svi(CompiledSVI):
        calls = 0

        def update(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            loss = super().update(x) * (float("nan") if self.calls == 130 else 1.0)
            reads_before.append(len(reads))
            return loss.as_subclass(Elsewhere)

    reads: list[int] = []
    reads_before: list[int] = []
    batches = pv.data.Batches(images(400), batch_size=2)
    m = make(svi=lambda *args: Svi(*args, compile=False))
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 130 \(epoch 1, batch 130\)"):
        fit(m.svi, batches, epochs=1, progress=False)
    assert len(reads) == 200
    assert set(reads_before) == {0, 100}
