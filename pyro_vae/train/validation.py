"""A look at the validation data that moves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..infer.distributed import gather, rank
from . import generators
from .batches import arguments, batch_size, fetched, naming_the_batch
from .parts import evaluating

if TYPE_CHECKING:
    from .run import Run

__all__ = ["validation_elbo"]


def validation_elbo(run: Run) -> float:
    """ELBO of the validation data, nats per datum: eval mode, no schedules, the same noise at every epoch."""
    loss_sum, count = 0.0, 0
    at = SimpleNamespace(position="batch 1")
    with evaluating(run.modules), generators.same_noise(rank()), naming_the_batch("validation", at):
        batches = fetched(run.validation, partial(_begun, run.validation), run.stop)
        for number, batch in enumerate(batches, 1):
            loss, rows = _loss(run, arguments(batch, run.transform))
            loss_sum += loss
            count += rows
            at.position = f"batch {number + 1}"  # an error may come of fetching it
    loss_sum, count = map(sum, zip(*gather((loss_sum, count)), strict=True))
    if count == 0:
        raise ValueError(
            "validation: expected at least one batch, got none. Give an iterable that can be iterated again."
        )
    return -loss_sum / count


def _loss(run: Run, args: tuple[Any, ...]) -> tuple[float, int]:
    """The loss summed over a batch's data, and their number."""
    rows = batch_size(args)
    if not rows:
        return 0.0, 0
    size = None if run.size is None else max(run.size, rows)  # a validation batch may outnumber the set
    keywords = {} if size is None else {"size": size}
    if run.calls is not None:
        run.calls.before("loss", args, keywords, partial(_repeat, run.svi, args, keywords))
    loss = run.svi.evaluate_loss(*args, **keywords)
    weight = rows / size if size else 1.0
    return float(loss[0] if isinstance(loss, tuple) else loss) * weight, rows


def _begun(batches: Any) -> Iterator[Any]:
    return iter(batches.iterate(0) if hasattr(batches, "iterate") else batches)


def _repeat(svi: Any, args: tuple[Any, ...], keywords: dict[str, Any], times: int) -> None:
    with generators.preserved():
        for _ in range(times):
            svi.evaluate_loss(*args, **keywords)
