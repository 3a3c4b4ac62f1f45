"""The ELBO of the validation data."""

from __future__ import annotations

from types import SimpleNamespace

from ..infer.distributed.exchange import gather
from ..infer.distributed.processes import rank
from .feed.arguments import Arguments
from .feed.batching import Feed, naming_the_batch
from .feed.polite_stop import StopRequested
from .feed.rows import length
from .parameters import evaluating
from .resume.generators import preserved, same_noise
from .run import Run
from .stepper import Stepper

__all__ = ["validation_elbo"]


def validation_elbo(run: Run, stepper: Stepper, feed: Feed, arguments: Arguments) -> float:
    """Return the ELBO of the validation data in nats per datum.

    It is evaluated in eval mode, without the schedules, and with the same noise at every epoch. No parameter and no
    random generator changes.

    Args:
        run: the run.
        stepper: evaluates the loss.
        feed: the validation batches.
        arguments: makes the arguments of model and guide from a batch.

    Raises:
        ValueError: there is no batch, or no data in any of them.
        StopRequested: a process is asked to stop.
    """
    loss, count, batches = 0.0, 0, 0
    at = SimpleNamespace(position="batch 1")
    with (
        evaluating(run.modules),
        preserved(feed.generators),
        same_noise(rank()),
        naming_the_batch("validation", at, feed.batches),
    ):
        for number, batch in enumerate(feed.epoch(0), 1):
            args, named = arguments.of(batch)
            data = stepper.rows.count(args, arguments.for_validation(named, length(args) or 1))
            if data.rows:
                kwargs = arguments.for_validation(named, data.rows)
                factor = data.rows / kwargs["size"] if run.size else data.factor
                loss += stepper.evaluate_loss(args, kwargs) * factor
            count += data.rows
            batches = number
            at.position = f"batch {number + 1}"  # of which fetching may fail
            if feed.stop_requested:
                break
    loss, count, batches, stops = map(sum, zip(*gather((loss, count, batches, feed.stop_requested)), strict=True))
    if stops:
        raise StopRequested
    if batches and count == 0:
        raise ValueError(
            "validation: expected data, got 0 in all batches. Give batches that hold data; where rows= counts them, it "
            "must return the number of data in a batch."
        )
    if count == 0:
        raise ValueError(
            "validation: expected at least one batch, got none. Give an iterable that can be iterated again."
        )
    return -loss / count
