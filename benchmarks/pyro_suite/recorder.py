"""A pytest plugin that writes down what ``SVI`` and ``loss_and_grads`` give in every test, as Pyro or captured."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.infer
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from torch import Tensor

import pyro_vae as pv


class Enough(BaseException):
    """Ends a test whose numbers suffice."""


class TooLong(BaseException):
    """Ends a test after its time."""


class Recorder:
    """Replaces ``SVI`` and ``loss_and_grads`` for one pytest session and writes a line of JSON for every test.

    In both modes a direct call of ``loss_and_grads`` whose objective, model, guide or shapes are new is made twice, the
    first time for the parameters that it registers alone; so the captured run, which needs that call, draws the same
    random numbers as the plain one.

    Args:
        captured: whether steps go through ``CompiledSVI(..., compile="graph")``.
        results: file that the lines are appended to.
        seconds: the most processor time that one test may take.
        most_calls: after so many calls a test ends.
    """

    def __init__(self, captured: bool, results: Path, seconds: int, most_calls: int) -> None:
        self.captured = captured
        self.results = results
        self.seconds = seconds
        self.most_calls = most_calls
        self.svi_class = _recording(pv.CompiledSVI if captured else SVI, self)
        self.originals = {c: c.__dict__["loss_and_grads"] for c in _objectives() if "loss_and_grads" in c.__dict__}
        self.direct = {c: self._direct(original) for c, original in self.originals.items()}
        self._begin()

    def _begin(self) -> None:
        self.numbers: list[Any] = []  # what every call gave, in order
        self.refusals: list[str] = []  # CaptureErrors
        self.said: list[str] = []  # CaptureWarnings
        self.engines: list[Any] = []  # every SVI that was made
        self._known: dict[Any, Any] = {}

    # -- the two kinds of calls ----------------------------------------------------------------------------------------

    def call(self, function: Callable[[], Any], note: Callable[[Any], Any]) -> Any:
        """Make a call with the objectives as Pyro wrote them, and write down its numbers or its error."""
        if len(self.numbers) >= self.most_calls:
            raise Enough
        try:
            with self.bare(), self._listening():
                result = function()
        except Exception as error:
            if isinstance(error, pv.CaptureError):
                self.refusals.append(str(error))
            self.numbers.append(f"raises {type(error).__name__}")
            raise
        self.numbers.append(note(result))
        return result

    def _direct(self, original: Any) -> Any:
        """``loss_and_grads`` of an objective that is called by a test itself."""

        @functools.wraps(original)
        def loss_and_grads(elbo: Any, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
            def compute() -> Any:
                if not self.captured:
                    return original(elbo, model, guide, *args, **kwargs)
                engine = self._engine(elbo, model, guide)
                loss, _ = engine.backward(*args, **kwargs)
                return tuple(map(_number, loss)) if isinstance(loss, tuple) else _number(loss)

            def twice_if_new() -> Any:
                key = (id(elbo), id(model), id(guide), _shapes((args, kwargs)))
                if key not in self._known:
                    self._known[key] = (elbo, model, guide)  # an id stays unique only while its object lives
                    with _random_state_kept(), _gradients_kept():
                        compute()
                with _gradients_kept() as before:
                    loss = compute()
                    after = {p: p.grad for p in _parameters()}
                for p, gradient in after.items():
                    if gradient is not None:
                        p.grad = gradient if before.get(p) is None else before[p] + gradient
                return loss

            return self.call(twice_if_new, lambda loss: [_plain(loss), _digest(p.grad for p in _parameters())])

        return loss_and_grads

    def _engine(self, elbo: Any, model: Any, guide: Any) -> pv.CompiledSVI:
        key = ("engine", id(elbo), id(model), id(guide))
        if key not in self._known:
            engine = pv.CompiledSVI(model, guide, pv.Adam({"lr": 0.0}), elbo, compile="graph")
            self._known[key] = engine
            self.engines.append(engine)
        return self._known[key]

    @contextlib.contextmanager
    def bare(self) -> Iterator[None]:
        """Inside, the objectives are as Pyro wrote them."""
        current = {c: c.__dict__["loss_and_grads"] for c in self.originals}
        self._set(self.originals)
        try:
            yield
        finally:
            self._set(current)

    def _set(self, functions: dict[Any, Any]) -> None:
        for objective, function in functions.items():
            objective.loss_and_grads = function

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Keep the capture's warnings from the test, which may turn warnings into errors, and write them down."""
        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=pv.CaptureWarning)
            warnings.filterwarnings("ignore", message="no parameter receives a gradient")  # which Pyro does not mind
            outer = warnings.showwarning

            def show(message: Any, category: Any, *rest: Any, **options: Any) -> None:
                if issubclass(category, pv.CaptureWarning):
                    self.said.append(str(message))
                else:
                    outer(message, category, *rest, **options)

            warnings.showwarning = show
            yield

    # -- pytest's hooks ------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: Any) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        self._begin()
        self._started = time.process_time()
        self._write({"test": item.nodeid, "event": "start"})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        def stop(*signal_and_frame: Any) -> None:
            raise TooLong

        self._rebind(SVI, self.svi_class)
        self._set(self.direct)
        previous = signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, self.seconds, 1.0)  # again and again: a callback may swallow an exception
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            signal.signal(signal.SIGPROF, previous)
            self._set(self.originals)
            self._rebind(self.svi_class, SVI)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
        report = yield
        failed = report.when != "call" and report.outcome in ("failed", "skipped")
        if report.when == "call" or (report.when == "setup" and failed):
            outcome, message = report.outcome, ""
            if call.excinfo is not None:
                kinds = {Enough: "enough", TooLong: "too long"}
                outcome = kinds.get(call.excinfo.type, outcome)
                text = " ".join(str(call.excinfo.value).split())
                message = f"{call.excinfo.type.__name__}: {text[:600]}"
            self._write(
                {
                    "test": item.nodeid,
                    "event": "end",
                    "outcome": outcome,
                    "message": message,
                    "numbers": self.numbers,
                    "parameters": _digest(p for p in _parameters()),
                    "refusals": self.refusals[:3],
                    "said": self.said[:3],
                    "captures": sum(engine.captures for engine in self.engines) if self.captured else 0,
                    "seconds": round(time.process_time() - self._started, 2),
                }
            )
        return report

    def _write(self, line: dict[str, Any]) -> None:
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _rebind(self, old: Any, new: Any) -> None:
        """Let every module that knows ``old`` under the name SVI know ``new``."""
        for module in list(sys.modules.values()):
            if isinstance(module, types.ModuleType) and vars(module).get("SVI") is old and module is not _THIS:
                module.SVI = new  # type: ignore[attr-defined]


_THIS = sys.modules[__name__]


def _recording(base: type[Any], recorder: Recorder) -> type[Any]:
    """``SVI`` or ``CompiledSVI``, its numbers written down."""

    class RecordingSVI(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if recorder.captured:
                kwargs["compile"] = "graph"
            with recorder.bare():
                super().__init__(*args, **kwargs)
            recorder.engines.append(self)

        def step(self, *args: Any, **kwargs: Any) -> Any:
            return recorder.call(lambda: base.step(self, *args, **kwargs), _plain)

        def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
            return recorder.call(lambda: base.evaluate_loss(self, *args, **kwargs), _plain)

    RecordingSVI.__name__ = base.__name__
    return RecordingSVI


def _objectives() -> list[type[Any]]:
    found, new = [], [ELBO, *(c for c in vars(pyro.infer).values() if isinstance(c, type))]
    while new:
        objective = new.pop()
        if objective not in found:
            found.append(objective)
            new += objective.__subclasses__()
    return found


def _parameters() -> list[Tensor]:
    return [p for _, p in sorted(pyro.get_param_store().named_parameters())]


def _digest(tensors: Any) -> list[Any]:
    """Sum and norm of every tensor: numbers that tell two runs apart."""
    digest = []
    for t in tensors:
        if t is None:
            digest.append(None)
        else:
            dense = t.detach().to_dense().to(torch.complex128 if t.is_complex() else torch.float64)
            digest.append([str(dense.sum().item()), str(torch.linalg.vector_norm(dense).item())])
    return digest


def _plain(loss: Any) -> Any:
    return [_plain(part) for part in loss] if isinstance(loss, tuple) else str(_number(loss))


def _number(loss: Any) -> Any:
    return loss.item() if isinstance(loss, Tensor) else loss


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, tuple | list):
        return tuple(map(_shapes, value))
    if isinstance(value, dict):
        return tuple((str(k), _shapes(v)) for k, v in value.items())
    return str(value) if isinstance(value, int | float | str | bool | None) else type(value).__name__


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


@contextlib.contextmanager
def _gradients_kept() -> Iterator[dict[Tensor, Tensor | None]]:
    """Inside, no parameter has a gradient; afterwards each has the one that it had before."""
    before = {p: p.grad for p in _parameters()}
    for p in before:
        p.grad = None
    try:
        yield before
    finally:
        for p in _parameters():
            p.grad = before.get(p)
