"""Train with any SVI on any iterable of batches."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from pyro.infer.util import zero_grads
from tqdm.auto import tqdm

from .._checks import require_positive_int
from ..infer import distributed
from ..infer.distributed import exchange
from .callbacks.checkpoint import Checkpoint
from .callbacks.dispatch import Dispatch
from .feed.arguments import Arguments
from .feed.batching import feed_of, require_iterable
from .feed.polite_stop import PoliteStop, StopRequested
from .feed.rows import Rows
from .history import History
from .late import LateParts
from .loop import Loop
from .opening import open_run
from .progress import ProgressBar
from .resume.belonging import describe_inputs
from .resume.checkpoint_file import last_checkpoint
from .resume.lock import locked
from .run import Run
from .schedules import Schedule, require_schedules
from .stepper import stepper_of

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
    keywords: Sequence[str] = (),
    rows: Callable[..., int] | None = None,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
    on_nonfinite: str = "raise",
) -> History:
    """Train with any Pyro ``SVI`` on any iterable of batches.

    A batch that is a tensor becomes ``svi.step(batch)``; a tuple ``svi.step(*batch)``. The loss of a step is taken to
    be minus the ELBO summed over the batch's data (or scaled up to ``size`` data where ``size`` is given, or to the
    whole plate where a plate is subsampled), and an epoch's figure is the sum over its steps, without that scale,
    divided by the number of its data. The number of data in a batch is the size of the plate named ``data`` (of its
    subsample, where it has one), or else the sum of the plates that hold observations and sit in no other plate.

    Before the first step, and for each new shape of a batch, model and guide run once on the batch, in eval mode: so
    every parameter exists, and the number of data is known. This moves no random generator.

    In a process group of ``torch.distributed`` with several processes, all of them call ``fit``, each with its share
    of the data (``Batches.shard``), and train one model together; see ``pyro_vae.infer.distributed``.

    Args:
        svi: a ``pyro.infer.SVI``, or anything with its ``model``, ``guide``, ``optim``, ``step`` and ``evaluate_loss``.
        train: batches, to be iterated once an epoch: ``pyro_vae.data.Batches``, a ``DataLoader``, a list, ...
        epochs: number of epochs to train, those before a resume included.
        validation: batches on which the ELBO is estimated after every epoch, in ``eval()`` mode, without the schedules,
            and with the same noise each time; this changes no parameter and no random generator.
        schedules: keyword arguments of the model and guide that change with time, e.g. ``{"beta": linear_warmup(10)}``;
            each is a function of the epochs trained so far.
        callbacks: ``pyro_vae.Callback`` instances (``Checkpoint``, ``EarlyStopping``, ``CSVLog``, ...), or functions
            that take the ``Run`` after every epoch; see ``pyro_vae.Callback`` for their order.
        size: number of data in the whole set, handed to model and guide as ``size=`` (for global latent variables).
        transform: makes the model's arguments from a batch, e.g. ``lambda batch: batch[0]`` to drop labels.
        keywords: names of the last items of each batch, which model and guide get by name: ``("mask",)`` for batches
            ``(x, mask)``, whose mask says what is observed.
        rows: function of the batch's positional arguments that returns its number of data, where the plates do not say
            it, or where it depends on values and not on shapes alone, e.g. ``lambda x, lengths: len(lengths)``. The
            loss is then taken to be summed over these data (or scaled up to ``size``), whatever the plates say.
        progress: whether to show a bar with the ELBO per datum of training and validation and the time that remains.
        resume: directory (or file) of ``pyro_vae.Checkpoint`` to go on from, to the bit on a CPU; where there is no
            checkpoint yet, training starts afresh and says so; where the run is complete, nothing is trained. Give the
            same data, model and callbacks as before.
        on_nonfinite: what happens when a loss or a gradient is NaN or infinite, which is noticed before the update:
            ``"raise"`` an error that names what is not finite, or ``"restore"`` the last checkpoint (the beginning of
            the epoch, where that is later), halve the learning rate and go on; after 3 such restores the error is
            raised.

    Returns:
        The figures of all epochs.

    Raises:
        TypeError: ``svi`` has no ``step``, say; ``train`` or ``validation`` is one tensor or not iterable; a batch
            does not fit the model's arguments; a schedule, a callback or ``transform`` is not a function.
        ValueError: ``epochs`` or ``size`` is not a positive integer; an epoch without a batch; data that the model
            refuses (the error names the batch); a checkpoint that cannot be used.
        FloatingPointError: a loss, a gradient or a parameter is NaN or infinite.
        SystemExit: after SIGINT, SIGTERM, SIGHUP or SIGUSR1, where a ``Checkpoint`` is among the callbacks.

        Any exception that ends the training has the figures of the finished epochs as its attribute ``history``.

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
        require_schedules(schedules, svi)
    if size is not None:
        require_positive_int("size", size)
    if transform is not None and not callable(transform):
        raise TypeError(
            f"transform: expected a function of a batch, got {transform!r}. Give e.g. lambda batch: batch[0]."
        )
    keywords = _require_names(keywords, schedules or {}, size)
    if rows is not None and not callable(rows):
        raise TypeError(
            f"rows: expected a function of the batch's arguments, got {rows!r}. Give e.g. lambda x: len(x)."
        )
    if on_nonfinite not in ("raise", "restore"):
        raise ValueError(f'on_nonfinite: expected "raise" or "restore", got {on_nonfinite!r}.')
    if resume is not None and not isinstance(resume, (str, os.PathLike)):
        raise TypeError(
            f"resume: expected the directory of a Checkpoint, or a file in it, got {resume!r}. Give the directory that "
            'the Checkpoint among the callbacks has, e.g. resume="checkpoints".'
        )
    dispatch = Dispatch(callbacks, last=Checkpoint)
    _require_same_settings(
        {
            "epochs": epochs,
            "size": size,
            "on_nonfinite": on_nonfinite,
            "schedules": sorted(schedules or {}),
            "validation": "given" if validation is not None else "not given",
            "callbacks": [  # the first process alone has the others
                type(callback).__name__
                for callback in dispatch.callbacks
                if callback.essential and not isinstance(callback, Checkpoint)
            ],
        }
    )
    exchange.same_generator()
    checkpoints = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    with ExitStack() as stack:
        # First of all: the workers of a data loader, which the first batch starts, inherit its handlers.
        polite_stop = stack.enter_context(PoliteStop(enabled=bool(checkpoints)))

        def lock() -> None:
            for checkpoint in checkpoints:
                stack.enter_context(locked(checkpoint.directory))

        distributed.from_first(lock)
        found = None if resume is None else distributed.from_first(lambda: last_checkpoint(resume))
        path, state = (None, None) if found is None else found
        run = Run(svi=svi, train=train, validation=validation, epochs=epochs, size=size, resumed_from=path)
        stepper, feed = stepper_of(svi, Rows(svi, rows)), feed_of("train", train, polite_stop)
        arguments, schedules, late = Arguments(transform, size, keywords), schedules or {}, LateParts(run)
        description = describe_inputs(run, schedules, transform, keywords, rows, dispatch.callbacks, on_nonfinite)
        try:
            told = open_run(run, stepper, feed, arguments, schedules, dispatch, late, description, state)
        except StopRequested:  # nothing was trained, so there is nothing to save
            raise _exit(run, checkpoints, polite_stop) from None
        loop = Loop(
            run,
            stepper,
            feed,
            validation=None if validation is None else feed_of("validation", validation, polite_stop),
            schedules=schedules,
            arguments=arguments,
            callbacks=dispatch,
            late=late,
            description=description,
            polite_stop=polite_stop,
            restoring=on_nonfinite == "restore",
        )
        loop.join()
        dispatch.start(run)
        if resume is not None and distributed.rank() == 0:
            _say_where(run, resume, told)
        bar = stack.enter_context(ProgressBar(run, shown=progress and distributed.rank() == 0))
        try:
            interrupted = loop.train(bar)
            run.status = "interrupted" if interrupted else "finished"
        except BaseException as error:
            run.status = "failed"
            error.history = run.history  # type: ignore[attr-defined]
            zero_grads(run.parameters.values())  # a step that was cut off leaves gradients, to which the next adds
            raise
        finally:
            dispatch.end(run)
    if interrupted:
        raise _exit(run, checkpoints, polite_stop)
    return run.history


def _require_svi(svi: Any, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not hasattr(svi, name)]
    if missing:
        what = f"the class {svi.__name__}" if isinstance(svi, type) else type(svi).__name__
        raise TypeError(
            f"svi: expected a pyro.infer.SVI, or anything with its {', '.join(names)}, got {what} without "
            f"{', '.join(missing)}. Make one: SVI(model, guide, pyro_vae.Adam({{'lr': 1e-3}}), Trace_ELBO())."
        )
    for name in ("model", "guide"):
        if not callable(getattr(svi, name)):
            raise TypeError(
                f"svi: expected a function as its {name}, got {getattr(svi, name)!r}. Give vae.{name}, say."
            )
    loss = getattr(svi, "loss", len)  # whatever takes steps need not have one
    if isinstance(loss, type) or not callable(loss):
        raise TypeError(
            f"svi: expected an objective as its loss, such as Trace_ELBO(), got {loss!r}. Make an object of the class."
        )
    if isinstance(svi.optim, torch.optim.Optimizer):
        raise TypeError(
            f"svi: expected an optimizer of Pyro, got torch.optim.{type(svi.optim).__name__} as its optim. "
            "Make the SVI with pyro_vae.Adam({'lr': 1e-3}), or pyro_vae.FusedOptim for another optimizer of torch."
        )


def _require_same_settings(own: dict[str, Any]) -> None:
    """Refuse processes that are to train together and were given other settings."""
    for other, theirs in enumerate(exchange.gather(own)):
        for name, value in own.items():
            if theirs[name] != value:
                raise ValueError(
                    f"{name}: expected the same in all processes, got {value!r} in process {distributed.rank()} and "
                    f"{theirs[name]!r} in process {other}. Call fit alike in each."
                )


def _say_where(run: Run, resume: Any, told: list[str]) -> None:
    epochs = f"epoch {run.epoch} of {run.epochs}"
    if run.resumed_from is None:
        text = f"no checkpoint in {resume} yet, starting afresh"
    elif run.epoch >= run.epochs:
        text = f"the run of {run.resumed_from} is complete after {epochs}, nothing to train"
    elif run.stopping:
        text = f"the run of {run.resumed_from} was stopped early after {epochs}, nothing to train"
    else:
        text = f"going on from {run.resumed_from} at {run.where}"
    tqdm.write("\n  ".join([f"pyro_vae: {text}", *told]), file=sys.stderr)


def _exit(run: Run, checkpoints: Sequence[Checkpoint], polite_stop: PoliteStop) -> SystemExit:
    """Say how to go on after a polite stop; return the exception that ends the process."""
    directory = str(checkpoints[0].directory)
    print(f"pyro_vae: stopped at {run.where}. Go on with fit(..., resume={directory!r}).", file=sys.stderr)
    stop = SystemExit(128 + (polite_stop.signal or signal.SIGTERM))
    stop.history = run.history  # type: ignore[attr-defined]
    return stop


def _require_names(keywords: Any, schedules: Mapping[str, Any], size: int | None) -> tuple[str, ...]:
    """Return ``keywords`` as a tuple; refuse what is no sequence of different names, and names that fit gives."""
    names = tuple(keywords) if isinstance(keywords, Sequence) and not isinstance(keywords, str) else (None,)
    if not all(isinstance(name, str) and name.isidentifier() for name in names) or len(set(names)) < len(names):
        raise ValueError(
            f"keywords: expected different names of the last items of a batch, got {keywords!r}. Write ('mask',)."
        )
    taken = sorted(set(names) & {*schedules, *(() if size is None else ("size",))})
    if taken:
        raise ValueError(
            f"keywords: expected names that neither schedules= nor size= gives, got {', '.join(taken)}. Leave them out "
            "of one of the two."
        )
    return names
