"""The loop that people write by hand."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from tqdm.auto import tqdm

from .._checks import require_positive_int
from ..infer import distributed
from .batches import require_iterable
from .callbacks import Callbacks
from .checkpoint import Checkpoint, last_checkpoint
from .guard import NotFinite, before_update
from .history import History
from .nonfinite import refuse, restore
from .run import Run
from .schedules import Schedule, require_schedules
from .signals import Interrupted, PoliteStop
from .state import state_of

__all__ = ["fit"]


def fit(
    svi: Any,
    train: Iterable[Any],
    *,
    epochs: int,
    validation: Iterable[Any] | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    callbacks: Sequence[Any] = (),
    size: int | None = None,
    transform: Callable[[Any], Any] | None = None,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
    on_nonfinite: str = "raise",
) -> History:
    """Train with any Pyro ``SVI`` on any iterable of batches.

    A batch that is a tensor becomes ``svi.step(batch)``; a tuple ``svi.step(*batch)``. The loss of a step is taken to
    be minus the ELBO summed over the batch's data (or scaled up to ``size`` data where ``size`` is given), so that an
    epoch's figure weighs a smaller last batch by its size. Before the first step, model and guide run once on the first
    batch, so that every parameter exists; this moves no random generator.

    In a process group of ``torch.distributed`` with several processes, all of them call ``fit``, each with its share
    of the data (``Batches.shard``), and train one model together; see ``pyro_vae.infer.distributed``.

    Args:
        svi: a ``pyro.infer.SVI``, or anything with its ``model``, ``guide``, ``optim``, ``step`` and ``evaluate_loss``.
        train: batches, to be iterated once an epoch: ``pyro_vae.data.Batches``, a ``DataLoader``, a list, ...
        epochs: how many epochs to train, those before a resume included.
        validation: batches on which the ELBO is estimated after every epoch, in ``eval()`` mode, without the schedules,
            and with the same noise each time; this moves no weight and no random generator.
        schedules: keyword arguments of the model and guide that change with time, e.g. ``{"beta": linear_warmup(10)}``;
            each is a function of the epochs trained so far.
        callbacks: ``pyro_vae.Callback`` instances (``Checkpoint``, ``EarlyStopping``, ``CSVLog``, ...), or functions
            that take the ``Run`` after every epoch; see ``pyro_vae.Callback`` for their order.
        size: number of data in the whole set, handed to model and guide as ``size=`` (for global latent variables).
        transform: makes the model's arguments from a batch, e.g. ``lambda batch: batch[0]`` to drop labels.
        progress: whether to show a bar with the ELBO per datum of training and validation and the time that remains.
        resume: directory (or file) of ``pyro_vae.Checkpoint`` to go on from, to the bit on a CPU; where there is no
            checkpoint yet, training starts afresh and says so. Give the same data, model and callbacks as before.
        on_nonfinite: what happens when a loss or a gradient is NaN or infinite, which is found before it reaches the
            weights: ``"raise"`` an error that names what is not finite, or ``"restore"`` the last checkpoint (the
            beginning of the epoch, where that is later), halve the learning rate and go on; after 3 such restores
            the error is raised all the same.

    Returns:
        The figures of every epoch.

    Raises:
        TypeError: ``svi`` has no ``step``, say; ``train`` or ``validation`` is one tensor or not iterable; a batch
            does not fit the model's arguments; a schedule, a callback or ``transform`` is not a function.
        ValueError: ``epochs`` or ``size`` is not a positive integer; an epoch without a batch; data that the model
            refuses (the error names the batch); a checkpoint that cannot be used.
        FloatingPointError: a loss or a gradient is NaN or infinite.
        SystemExit: after SIGINT or SIGTERM, where a ``Checkpoint`` is among the callbacks.

    Example:
        >>> import pyro, torch, pyro_vae as pv
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> vae = pv.VAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=())),
        ...     pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=())),
        ... )
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        >>> batches = torch.ones(100, 6).split(32)
        >>> history = pv.fit(svi, batches, epochs=3, schedules={"beta": pv.linear_warmup(2)}, progress=False)
        >>> history["beta"], history["steps"]
        ([0.5, 1.0, 1.0], [4, 8, 12])
    """
    _require_svi(svi, ("model", "guide", "optim", "step") + (() if validation is None else ("evaluate_loss",)))
    require_positive_int("epochs", epochs)
    require_iterable("train", train)
    if validation is not None:
        require_iterable("validation", validation)
    if schedules is not None:
        require_schedules(schedules)
    if size is not None:
        require_positive_int("size", size)
    if transform is not None and not callable(transform):
        raise TypeError(
            f"transform: expected a function of a batch, got {transform!r}. Give e.g. lambda batch: batch[0]."
        )
    if on_nonfinite not in ("raise", "restore"):
        raise ValueError(f'on_nonfinite: expected "raise" or "restore", got {on_nonfinite!r}.')
    hooks = Callbacks(callbacks, last=Checkpoint)
    run = Run(
        svi,
        train,
        epochs=epochs,
        validation=validation,
        schedules=schedules,
        size=size,
        transform=transform,
        callbacks=hooks,
    )
    distributed.same_generator()
    run.agree_on_length()
    found = None if resume is None else distributed.from_first(lambda: last_checkpoint(resume))
    if found is not None:
        run.resumed_from = found[0]
    can_stop_politely = any(isinstance(callback, Checkpoint) for callback in callbacks)
    with ExitStack() as stack:
        # First of all: the workers of a data loader, which the first batch starts, inherit it.
        run.stop = stack.enter_context(PoliteStop(enabled=can_stop_politely))
        try:
            run.open(None if found is None else found[1])
        except Interrupted:  # nothing was trained that could be saved
            raise _stopped(run, callbacks) from None
        distributed.same_start(run.parameters, run.modules)
        if resume is not None and distributed.rank() == 0:
            what = (
                f"going on from {found[0]} at {run.where}"
                if found
                else f"no checkpoint in {resume} yet, starting afresh"
            )
            tqdm.write(f"pyro_vae: {what}", file=sys.stderr)
        hooks.start(run)
        stack.enter_context(before_update(svi, lambda loss: refuse(run, loss)))
        if distributed.world_size() > 1:
            run.joint = distributed.JointStep(svi, run.parameters, stop=lambda: run.stop.signal is not None)
        bar = stack.enter_context(_bar(run, progress and distributed.rank() == 0))
        try:
            interrupted = _train(run, bar, restoring=on_nonfinite == "restore")
            run.status = "interrupted" if interrupted else "finished"
        except BaseException:
            run.status = "failed"
            raise
        finally:
            hooks.end(run)
    if interrupted:
        raise _stopped(run, callbacks)
    return run.history


def _require_svi(svi: Any, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not hasattr(svi, name)]
    if missing:
        what = f"the class {svi.__name__}" if isinstance(svi, type) else type(svi).__name__
        raise TypeError(
            f"svi: expected a pyro.infer.SVI, or anything with its {', '.join(names)}, got {what} without "
            f"{', '.join(missing)}. Make one: SVI(model, guide, pyro_vae.Adam({{'lr': 1e-3}}), Trace_ELBO())."
        )


def _train(run: Run, bar: Any, *, restoring: bool) -> bool:
    """Train to the end, or (``True``) to a polite stop."""
    while run.epoch < run.epochs and not run.stopping:
        if restoring and run.batch == 0:
            run.snapshot = state_of(run)
        try:
            if not _finish_epoch(run, bar):
                return True
        except NotFinite as error:
            restore(run, error, restoring)
            bar.update(run.step - bar.n)
            continue
        if not bar.disable and run.batches_per_epoch is not None:
            bar.total = run.epochs * run.batches_per_epoch
        _describe(bar, run)
        run.callbacks.epoch_end(run)
        wishes = distributed.gather((run.stopping, run.stop.signal is not None))
        run.stopping, interrupted = map(any, zip(*wishes, strict=True))
        if interrupted:
            return True
    return False


def _finish_epoch(run: Run, bar: Any) -> bool:
    """Train for the rest of an epoch; ``False`` after a polite stop."""
    try:
        for _ in run.steps():
            run.callbacks.step_end(run)
            # A look at the loss waits for the device, so it is taken only when the bar is drawn anyway.
            if bar.update():
                _describe(bar, run)
            # Several processes stop after the same step, which they agreed on in it.
            if run.joint.stopping if run.joint is not None else run.stop.signal is not None:
                break
        else:
            run.finish_epoch()
            return True
    except Interrupted:
        pass  # as good a place to stop as the end of a step
    run.refuse_nonfinite()
    return False


def _stopped(run: Run, callbacks: Sequence[Any]) -> SystemExit:
    """Say how to go on after a polite stop; the exception that ends the process."""
    directory = next(callback.directory for callback in callbacks if isinstance(callback, Checkpoint))
    print(f"pyro_vae: stopped at {run.where}. Go on with fit(..., resume={str(directory)!r}).", file=sys.stderr)
    return SystemExit(128 + (run.stop.signal or signal.SIGTERM))


def _bar(run: Run, progress: bool) -> Any:
    total = None if run.batches_per_epoch is None else run.epochs * run.batches_per_epoch
    return tqdm(total=total, initial=run.step, disable=not progress, unit="step", mininterval=0.5, dynamic_ncols=True)


def _describe(bar: Any, run: Run) -> None:
    if bar.disable:
        return
    done = run.history[-1] if len(run.history) else {}
    train = run.train_elbo if run.batch else done.get("train_elbo")
    figures = {"train": train, "validation": done.get("validation_elbo")}
    text = ", ".join(f"{name} {value:.2f}" for name, value in figures.items() if value is not None)
    bar.set_description(f"epoch {min(run.epoch + 1, run.epochs)}/{run.epochs}", refresh=False)
    bar.set_postfix_str(f"ELBO {text} nats", refresh=False)
