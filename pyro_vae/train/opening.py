"""The beginning of a run, afresh or from a checkpoint, up to its first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..infer.distributed.exchange import from_first, gather
from ..infer.distributed.processes import world_size
from .callbacks.dispatch import Dispatch
from .feed.arguments import Arguments, require_arguments
from .feed.batching import Feed, naming_the_batch
from .global_sites import warn_of_globals
from .late import LateParts
from .parameters import look_at
from .resume import generators
from .resume.belonging import describe_model, differences
from .resume.learning_rates import require_long_enough
from .resume.run_state import put_back, set_position
from .run import Run
from .schedules import Schedule, values_at
from .stepper import Stepper

__all__ = ["begin_epoch", "no_batch", "open_run"]


def open_run(
    run: Run,
    stepper: Stepper,
    feed: Feed,
    arguments: Arguments,
    schedules: Mapping[str, Schedule],
    callbacks: Dispatch,
    late: LateParts,
    description: dict[str, Any],
    state: dict[str, Any] | None,
) -> list[str]:
    """Fetch the first batch, run model and guide on it so that all parameters exist, and go on from ``state``.

    Args:
        run: the run; ``resumed_from`` is the checkpoint that holds ``state``.
        stepper: takes its steps.
        feed: the training batches.
        arguments: makes the arguments of model and guide from a batch.
        schedules: keyword arguments of model and guide that change with time.
        callbacks: take up their states.
        late: takes in what appears after the first batch.
        description: of data, optimizer and settings; that of model and guide is added.
        state: contents of a checkpoint, or None.

    Returns:
        Harmless differences between the run that wrote the checkpoint and this one, as lines of text.

    Raises:
        ValueError: there is no batch, or the checkpoint belongs to another run. The latter changes nothing.
    """
    run.first_epoch = feed.first_epoch
    run.batches_per_epoch = _longest(feed.length)
    if state is None:
        _look(run, stepper, feed, arguments, schedules, late)
        description |= describe_model(run)
        _require_steps(run)
        return []
    before = feed.state_dict(0)
    try:
        _require_belonging(run.resumed_from, state, description)
        set_position(run, feed, state)
        _look(run, stepper, feed, arguments, schedules, late)
        description |= describe_model(run)
        told = _require_belonging(run.resumed_from, state, description)
        run.values = dict(state["values"])
        more_epochs = state["belongs_to"].get("epochs") != run.epochs
        told += put_back(run, stepper, callbacks, late, state, keep_plans=more_epochs)
        _require_steps(run)
    except BaseException:
        feed.load_state_dict(before)
        raise
    return told


def begin_epoch(run: Run, feed: Feed) -> Iterator[Any]:
    """Begin an epoch, or the rest of one, and return its batches."""
    if run.batch == 0:
        feed.mark_epoch()
        run.meter.reset()
    run.meter.start_clock()
    return feed.epoch(run.first_epoch + run.epoch, run.batch)


def no_batch(run: Run) -> ValueError:
    """Return the error about an epoch without a batch."""
    return ValueError(
        f"train: expected at least one batch in every epoch, got none in epoch {run.epoch + 1}. "
        "Give data, and an iterable that can be iterated again (a list, a DataLoader, pyro_vae.data.Batches), "
        "not a generator."
    )


def _look(
    run: Run,
    stepper: Stepper,
    feed: Feed,
    arguments: Arguments,
    schedules: Mapping[str, Schedule],
    late: LateParts,
) -> None:
    """Run model and guide on the first batch, and take in what they use."""
    with naming_the_batch("train", run, run.train):
        if run.epoch < run.epochs:
            batch = _first_batch(run, feed)
        else:  # nothing to train: a batch is needed, and no generator may move
            with generators.preserved(feed.generators):
                batch = _first_batch(run, feed)
        with generators.preserved(feed.generators):  # the transform will be called again for the step
            args, named = arguments.of(batch)
        require_arguments("train", args, named, run.svi.model)
        run.values = values_at(schedules, run.time)
        kwargs = arguments.keyword(args, named, run.values)
        look = look_at(run.svi, args, kwargs)
    late.take_in(look)
    stepper.rows.learn(args, kwargs, look.model_trace)
    warn_of_globals(look.model_trace, run.batches_per_epoch)
    for module in run.modules:
        module.train()


def _first_batch(run: Run, feed: Feed) -> Any:
    batches = begin_epoch(run, feed)
    first = next(batches, None)
    if first is not None:
        feed.put_back(first, batches)
    elif run.batch:  # a stop came between the last step of an epoch and its end: any batch will do
        feed.put_back(None, batches)
        first = feed.first_batch(run.first_epoch + run.epoch)
    if first is None:
        raise no_batch(run)
    return first


def _require_belonging(path: Path | None, state: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Refuse a checkpoint of another run; return the harmless differences. The first process compares for all."""
    serious, mild = from_first(lambda: differences(state["belongs_to"], now))
    if serious:
        lines = "".join(f"\n  {line}" for line in serious)
        raise ValueError(
            f"resume: {path} belongs to another run:{lines}\nNothing was changed. Resume that run with what it was "
            "made with, or begin a new one in another directory; it can begin with the checkpoint's parameters: "
            'module.load_state_dict(pyro_vae.read_checkpoint(path)["modules"][0]).'
        )
    return mild


def _require_steps(run: Run) -> None:
    if run.batches_per_epoch is not None:
        require_long_enough(run.svi.optim, run.epochs * run.batches_per_epoch - run.step)


def _longest(length: int | None) -> int | None:
    """The longest epoch of all processes; None where one does not know its own."""
    lengths = [other for other in gather(length) if other is not None]
    return max(lengths) if len(lengths) == world_size() else None
