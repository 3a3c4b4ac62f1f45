"""The loop: steps, ends of epochs, and returns to an earlier state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

import torch

from .._warn import warn
from ..infer.distributed.exchange import gather, own_noise, require_same, same_start
from ..infer.distributed.processes import world_size
from .callbacks.dispatch import Dispatch
from .feed.arguments import Arguments
from .feed.batching import Feed, naming_the_batch
from .feed.polite_stop import PoliteStop, StopRequested
from .late import LateParts
from .nonfinite.detect import NotFinite, refuse_update, require_finite_parameters
from .nonfinite.explain import StepInputs, cause_of, explanation
from .nonfinite.restore import LastGoodState
from .opening import begin_epoch, no_batch
from .progress import ProgressBar
from .resume.learning_rates import multiply_learning_rates
from .resume.run_state import put_back, set_position, state_of
from .run import Run
from .schedules import Schedule, values_at
from .stepper import JointStepper, Stepper
from .validation import validation_elbo

__all__ = ["Loop"]

_END = object()  # in place of a batch, where other processes may still have one


class Loop:
    """Trains a run.

    Args:
        run: the data that callbacks see; written here alone.
        stepper: takes the steps.
        feed: the training batches.
        validation: the validation batches, or None.
        schedules: keyword arguments of model and guide that change with time.
        arguments: makes the arguments of model and guide from a batch.
        callbacks: called at their moments.
        late: takes in what model and guide use for the first time in a later step.
        description: what the checkpoints of this run belong to.
        polite_stop: whether the run is asked to stop.
        restoring: whether to go back to the last good state after a step that is not finite.
    """

    def __init__(
        self,
        run: Run,
        stepper: Stepper,
        feed: Feed,
        *,
        validation: Feed | None,
        schedules: Mapping[str, Schedule],
        arguments: Arguments,
        callbacks: Dispatch,
        late: LateParts,
        description: dict[str, Any],
        polite_stop: PoliteStop,
        restoring: bool,
    ) -> None:
        self.run = run
        self.stepper = stepper
        self.feed = feed
        self.validation = validation
        self.schedules = schedules
        self.arguments = arguments
        self.callbacks = callbacks
        self.late = late
        self.description = description
        self.polite_stop = polite_stop
        self._last_good = LastGoodState(enabled=restoring)
        self._inputs: StepInputs | None = None  # of the last step
        run.take_state = self._take_state

    def join(self) -> None:
        """Begin with the same parameters in all processes, and take all steps together."""
        run = self.run
        same_start(run.parameters, run.modules)
        if world_size() > 1:
            self.stepper = JointStepper(self.stepper, run.parameters, lambda: self.polite_stop.signal is not None)

    def train(self, bar: ProgressBar) -> bool:
        """Train to the end and return False, or to a polite stop and return True."""
        run = self.run
        with self.stepper.refusing(self._refuse):
            while run.epoch < run.epochs and not run.stopping:
                if run.batch == 0 and self._last_good.enabled:
                    self._last_good.keep(self._state())
                try:
                    if not self._train_epoch(bar):
                        return True
                    bar.epoch()
                    self.callbacks.epoch_end(run)
                    self._require_finite()  # a callback may have changed the parameters
                except NotFinite as error:
                    self._go_back(error)
                    bar.go_back()
                    continue
                wishes = gather((run.stopping, self.polite_stop.signal is not None))
                run.stopping, interrupted = map(any, zip(*wishes, strict=True))
                if interrupted:
                    return True
        return False

    # -- an epoch --------------------------------------------------------------------------------------------------

    def _train_epoch(self, bar: ProgressBar) -> bool:
        """Train for the rest of an epoch; return False after a polite stop."""
        run = self.run
        try:
            for stopping in self._steps():
                self.callbacks.step_end(run)
                bar.step()
                # Several processes stop after the same step, on which they agree within it.
                if stopping or (self.polite_stop.signal is not None and not isinstance(self.stepper, JointStepper)):
                    break
            else:
                self._end_epoch()
                return True
        except StopRequested:
            pass  # the run stands at the end of a step, where it can stop
        self._require_finite()
        return False

    def _steps(self) -> Iterator[bool]:
        """Take the steps that the epoch still has; yield after each whether the processes agreed to stop."""
        run = self.run
        with naming_the_batch("train", run, run.train):
            for batch in self._until_all_end(self.feed.take() or begin_epoch(run, self.feed)):
                values = run.values
                self._set_values()
                args, named = ((), {}) if batch is _END else self.arguments.of(batch)
                kwargs = self.arguments.keyword(args, named, run.values)
                with own_noise():
                    self._inputs = StepInputs(args, kwargs, torch.get_rng_state())
                    try:
                        self.late.before_step(args, kwargs)
                        done = self.stepper.step(args, kwargs)
                        self.late.after_step(args, kwargs)
                    except ValueError as error:
                        cause = cause_of(error, run.svi, self._inputs, run.parameters, run.where, run.batch)
                        raise cause or error from error
                if not done.taken:
                    run.values = values
                    break
                weight = done.rows / run.size if run.size else done.factor
                run.meter.add(done.loss, done.rows, weight, run.step, run.epoch, run.batch)
                run.step += 1
                run.batch += 1
                yield done.stopping
        if run.batch == 0:
            raise no_batch(run)
        run.batches_per_epoch = run.batch

    def _until_all_end(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; then, where several processes train, ``_END`` for as long as another one has batches."""
        yield from batches
        if isinstance(self.stepper, JointStepper):
            yield from repeat(_END)

    def _end_epoch(self) -> None:
        """Validate, and write the epoch's row of the history."""
        run = self.run
        self._require_finite()
        if run.meter.rows == 0:
            raise ValueError(
                f"train: expected data in every epoch, got 0 in all batches of epoch {run.epoch + 1}. Give batches "
                "that hold data; where rows= counts them, it must return the number of data in a batch."
            )
        require_same(run.parameters)
        same_start({}, run.modules)  # buffers, such as running averages: all take the first process's
        row: dict[str, float] = {"epoch": run.epoch + 1, "train_elbo": run.meter.elbo}
        if self.validation is not None:
            row["validation_elbo"] = validation_elbo(run, self.stepper, self.validation, self.arguments)
        run.history.append({**row, **run.values, "seconds": run.meter.seconds, "steps": run.step})
        run.epoch += 1
        run.batch = 0
        self.feed.finish_epoch(run.first_epoch + run.epoch)
        # A checkpoint may be taken now, before the next epoch begins.
        run.meter.reset()
        self.feed.mark_epoch()

    def _set_values(self) -> None:
        self.run.values = values_at(self.schedules, self.run.time)

    # -- states ----------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return state_of(self.run, self.stepper, self.feed, self.callbacks, self.late, self.description)

    def _take_state(self) -> dict[str, Any] | None:
        try:
            self._require_finite()
        except NotFinite:
            return None
        state = self._state()
        if not isinstance(self.stepper, JointStepper):  # the other processes take no state at this step
            self._last_good.keep(state)
        return state

    def _require_finite(self) -> None:
        """Raise where a loss so far, some of which may still be on an accelerator, or a parameter is not finite."""
        self.run.meter.read()
        self.run.meter.require_finite()
        require_finite_parameters(self.run.parameters, self.run.step)

    def _refuse(self, loss: Any) -> None:
        refuse_update(loss, self.run.parameters, self.run.where, self.run.batch)

    def _go_back(self, error: NotFinite) -> None:
        """Go back to the last good state with half the learning rate, or raise an error that explains the failure."""
        run = self.run
        try:
            state = self._last_good.restore(self._explanation(error))
        except (ValueError, FloatingPointError) as reason:
            raise reason from error
        factor = run.learning_rate_factor / 2
        set_position(run, self.feed, state)
        self.feed.take()  # of the epoch that was begun
        put_back(run, self.stepper, self.callbacks, self.late, state)
        multiply_learning_rates(run.svi.optim, factor / run.learning_rate_factor)
        run.learning_rate_factor = factor
        run.stopping = False
        warn(
            f"{error}. Back to {run.where} with {factor:g} times the learning rate ({self._last_good}).",
            RuntimeWarning,
        )

    def _explanation(self, error: NotFinite) -> Exception:
        run = self.run
        batch = run.batch if error.batch is None else error.batch
        inputs = None if error.applied else self._inputs
        if batch != run.batch:  # it was noticed some steps later
            again = self.feed.read_again(run.first_epoch + run.epoch, batch)
            inputs = None
            if again is not None:
                args, named = self.arguments.of(again)
                inputs = StepInputs(args, self.arguments.keyword(args, named, run.values), None)
        position = f"epoch {run.epoch + 1}, batch {batch + 1}"
        return explanation(error, run.svi, inputs, run.parameters, position)
