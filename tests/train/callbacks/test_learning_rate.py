"""``LearningRate``."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from tiny import Figures, images, make, train

from pyro_vae.infer import Adam
from pyro_vae.train import LearningRate, fit
from pyro_vae.train.resume.learning_rates import param_groups

OPTIMISERS = {
    "pyro": lambda: pyro.optim.Adam({"lr": 0.1}),
    "pyro, by name": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1}),
    "ours": lambda: Adam({"lr": 0.1}),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_learning_rate_of_every_step(optimiser: str) -> None:
    rates = []
    m = make(optim=OPTIMISERS[optimiser]())
    step = m.svi.step

    def noting(*args: Any, **keywords: Any) -> Any:
        rates.append({group["lr"] for group in param_groups(m.svi.optim)})
        return step(*args, **keywords)

    m.svi.step = noting
    fit(m.svi, images(32).split(16), epochs=2, callbacks=[LearningRate(lambda t: t)], progress=False)
    assert [rate for (rate,) in rates] == pytest.approx([0.05, 0.1, 0.15, 0.2])  # the first step too


def test_learning_rate_takes_the_step_of_a_scheduler_of_pyro() -> None:
    optim = pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-3}, "gamma": 0.1})
    m = make(optim=optim)
    train([LearningRate()], epochs=2, m=m)
    assert {round(group["lr"], 9) for group in param_groups(optim)} == {1e-5}
    with pytest.raises(TypeError, match="expected a function with a plain optimizer"):
        train([LearningRate()])


@pytest.mark.parametrize(("mode", "monitor"), [("min", None), ("max", None), ("min", "train_elbo")])
def test_reduce_on_plateau(mode: str, monitor: str | None) -> None:
    """Figures in place of the real ones: two rises, then none; a patience of 1 halves the rate after the fifth."""
    options = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-6}, "factor": 0.5, "patience": 1}
    optim = pyro.optim.ReduceLROnPlateau({**options, "mode": mode, "threshold": 0.1, "threshold_mode": "abs"})
    m = make(optim=optim)
    rates = []
    figures = [-9.0, -8.0, -7.0, -7.0, -7.0, -7.0]

    def note(run: Any) -> None:
        rates.append(next(param_groups(optim))["lr"])

    class Given(Figures):
        def epoch_end(self, run: Any) -> None:
            run.history._rows[-1][monitor or "validation_elbo"] = self.figures[run.epoch - 1]

    callbacks = [Given(figures), LearningRate(monitor=monitor), note]
    train(callbacks, epochs=6, m=m, validation=[images()] if monitor is None else None)
    assert rates == pytest.approx([1e-6] * 4 + [5e-7] * 2)


def test_reduce_on_plateau_refuses_a_figure_that_is_not_there() -> None:

    def make_one() -> Any:
        return make(optim=pyro.optim.ReduceLROnPlateau({"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-6}}))

    with pytest.raises(ValueError, match="monitor: 'validation_elbo' needs validation data"):
        train([LearningRate(monitor="validation_elbo")], m=make_one())
    with pytest.raises(ValueError, match="monitor: expected one of"):
        train([LearningRate(monitor="elbo")], m=make_one())
