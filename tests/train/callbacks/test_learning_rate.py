"""``LearningRate``."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from tiny import images, make, train

from pyro_vae.infer import Adam
from pyro_vae.train import LearningRate, fit
from pyro_vae.train.resume.optimizer_state import param_groups

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
