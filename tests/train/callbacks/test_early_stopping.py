"""``EarlyStopping``."""

from __future__ import annotations

import math

import pyro
import pytest
from tiny import Figures, images, make, train

from pyro_vae.train import EarlyStopping


@pytest.mark.parametrize(
    ("figures", "patience", "min_delta", "epochs", "best_epoch"),
    [
        ([1, 2, 3, 4, 5], 1, 0.0, 5, 5),
        ([1, 3, 2, 2, 9], 2, 0.0, 4, 2),
        ([1, 3, 2, 4, 3, 3, 9], 2, 0.0, 6, 4),
        ([1, 1.5, 2.5, 3, 3.2, 9], 3, 1.0, 6, 6),
        ([1, math.nan, math.nan, 9], 2, 0.0, 3, 1),
        ([1, 1.5, 1.9, 9], 2, 1.0, 3, 1),
    ],
)
def test_early_stopping(figures: list[float], patience: int, min_delta: float, epochs: int, best_epoch: int) -> None:
    m = make()
    stopping = EarlyStopping(patience=patience, min_delta=min_delta)
    history = train([Figures(figures), stopping], epochs=len(figures), m=m, validation=[images()])
    assert len(history) == epochs
    assert (stopping.best_epoch, stopping.best) == (best_epoch, figures[best_epoch - 1])
    first = next(iter(pyro.get_param_store().named_parameters()))[1]
    assert bool((first == best_epoch).all())  # the best weights are back


def test_early_stopping_refuses_what_it_cannot_watch() -> None:
    with pytest.raises(ValueError, match="needs validation data"):
        train([EarlyStopping()])
    with pytest.raises(ValueError, match="monitor: expected one of"):
        train([EarlyStopping("elbo")])
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match="min_delta"):
        EarlyStopping(min_delta=-1.0)
