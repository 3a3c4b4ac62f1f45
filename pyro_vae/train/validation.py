"""A look at the validation data that moves nothing."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..infer.distributed import gather, rank
from . import generators
from .batches import arguments, batch_size, naming_the_batch
from .parts import evaluating

if TYPE_CHECKING:
    from .run import Run

__all__ = ["validation_elbo"]


def validation_elbo(run: Run) -> float:
    """ELBO of the validation data, nats per datum: eval mode, no schedules, the same noise at every epoch."""
    loss_sum, count = 0.0, 0
    at = SimpleNamespace(position="batch 1")
    with evaluating(run.modules), generators.same_noise(rank()), naming_the_batch("validation", at):
        batches = run.validation.iterate(0) if hasattr(run.validation, "iterate") else run.validation
        for number, batch in enumerate(batches, 1):
            at.position = f"batch {number}"
            args = arguments(batch, run.transform)
            rows = batch_size(args)
            if not rows:
                continue
            size = None if run.size is None else max(run.size, rows)  # a validation batch may outnumber the set
            keywords = {} if size is None else {"size": size}
            if run.calls is not None:
                run.calls.before("loss", args, keywords, partial(_repeat, run.svi, args, keywords))
            loss = run.svi.evaluate_loss(*args, **keywords)
            weight = rows / size if size else 1.0
            loss_sum += float(loss[0] if isinstance(loss, tuple) else loss) * weight
            count += rows
    loss_sum, count = map(sum, zip(*gather((loss_sum, count)), strict=True))
    if count == 0:
        raise ValueError(
            "validation: expected at least one batch, got none. Give an iterable that can be iterated again."
        )
    return -loss_sum / count


def _repeat(svi: Any, args: tuple[Any, ...], keywords: dict[str, Any], times: int) -> None:
    with generators.preserved():
        for _ in range(times):
            svi.evaluate_loss(*args, **keywords)
