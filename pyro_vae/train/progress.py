"""The progress bar."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

from .run import Run

__all__ = ["ProgressBar"]


class ProgressBar:
    """A bar with the ELBO of training and validation in nats per datum, and the time that remains.

    Args:
        run: the run.
        shown: whether to show it.
    """

    def __init__(self, run: Run, *, shown: bool) -> None:
        self._run = run
        self._bar: Any = tqdm(
            total=self._total(),
            initial=run.step,
            disable=not shown,
            unit="step",
            mininterval=0.5,
            dynamic_ncols=True,
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self) -> None:
        """Count a step."""
        # The ELBO is read, which waits for an accelerator, only where the bar is drawn.
        if self._bar.update():
            self._describe()

    def epoch(self) -> None:
        """Show the figures of an epoch."""
        if not self._bar.disable:
            self._bar.total = self._total()
            self._describe()

    def go_back(self) -> None:
        """Show an earlier step, which the run returned to."""
        self._bar.update(self._run.step - self._bar.n)

    def _total(self) -> int | None:
        run = self._run
        return None if run.batches_per_epoch is None else run.epochs * run.batches_per_epoch

    def _describe(self) -> None:
        run = self._run
        last = run.history[-1] if len(run.history) else {}
        train = run.meter.elbo if run.batch else last.get("train_elbo")
        figures = {"train": train, "validation": last.get("validation_elbo")}
        text = ", ".join(f"{name} {value:.2f}" for name, value in figures.items() if value is not None)
        self._bar.set_description(f"epoch {min(run.epoch + 1, run.epochs)}/{run.epochs}", refresh=False)
        self._bar.set_postfix_str(f"ELBO {text} nats", refresh=False)
