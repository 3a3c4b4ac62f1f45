"""Save pictures as training goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from ..._checks import require_positive_int
from ..parameters import evaluating
from ..resume.generators import same_noise
from ..run import Run
from .base import Callback, absolute

__all__ = ["SamplePictures"]


class SamplePictures(Callback):
    """Save a picture every few epochs, as ``epoch-0010.png`` and so on.

    Each is drawn with the same noise, and training goes on as if none had been drawn.

    Args:
        directory: where the pictures go; it is made.
        draw: a function without arguments that returns a ``matplotlib`` figure, e.g.
            ``lambda: pyro_vae.plots.image_grid(vae.sample(100), (28, 28))``; it runs in eval mode and without
            gradients.
        every: number of epochs from one picture to the next; the last epoch has one too.

    Raises:
        ValueError: ``every`` is not a positive integer.
        OSError: (at the start) the directory cannot be made.
    """

    def __init__(self, directory: str | os.PathLike[str], draw: Callable[[], Any], *, every: int = 1) -> None:
        self.directory = absolute(directory)
        self.draw = draw
        self.every = require_positive_int("every", every)

    def start(self, run: Run) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def epoch_end(self, run: Run) -> None:
        if run.epoch % self.every and run.epoch < run.epochs:
            return
        with evaluating(run.modules), same_noise(), torch.no_grad():
            figure = self.draw()
        getattr(figure, "figure", figure).savefig(self.directory / f"epoch-{run.epoch:04d}.png")
