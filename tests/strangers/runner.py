"""Runs a program by ``pyro.infer.SVI`` and by ``CompiledSVI`` from one seed, and says in what they differ."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import pyro_vae as pv

STEPS = 20

# What may become of a program.
CAPTURED = "captured"
ROUNDED = "captured, up to rounding"  # torch takes another algorithm under a tracer
NOTICED = "captured anew"  # state changes in mid-training, which is watched
LEFT = "left to Pyro"  # with a warning that names the line
AUDIT = "found by the audit"  # an error; state changes where nothing watches
OUTCOMES = (CAPTURED, ROUNDED, NOTICED, LEFT, AUDIT)
ROUNDING = 1e-6  # largest relative difference of a loss or a parameter


class Call(NamedTuple):
    """The arguments of one step."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Setup(NamedTuple):
    """One program, made anew: what ``SVI`` takes, and the arguments of its steps.

    ``before_step(svi, i)`` is called before step ``i``, for programs that change something in mid-training. ``run``
    replaces the loop over the batches. ``tensors`` are compared at the end, besides losses, parameters and the buffers
    of ``modules``.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    batches: list[Call]
    loss: Any = None  # Trace_ELBO() where none is given
    optimizer: Any = None  # pv.Adam where none is given
    loss_and_grads: Any = None
    before_step: Callable[[SVI, int], None] | None = None
    run: Callable[[SVI, list[Call]], list[Any]] | None = None
    modules: tuple[nn.Module, ...] = ()
    tensors: tuple[Tensor, ...] = ()


class Program(NamedTuple):
    """A program and what is expected to become of it."""

    name: str
    theme: str
    make: Callable[[], Setup]
    outcome: str
    says: str  # part of the warning or error: the line of the program that it must name, or the cure
    compiled: bool  # whether it is also run with compile=True
    around: Callable[[], contextlib.AbstractContextManager[Any]]

    @property
    def title(self) -> str:
        """The first line of the program's docstring, without its full stop."""
        return (self.make.__doc__ or self.name).strip().splitlines()[0].rstrip(".")


PROGRAMS: dict[str, Program] = {}


def program(
    outcome: str,
    *,
    says: str = "",
    compiled: bool = False,
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Callable[[Callable[[], Setup]], Callable[[], Setup]]:
    """Enter a function that makes a :class:`Setup` into the table of programs.

    Args:
        outcome: one of ``OUTCOMES``.
        says: what the warning or the error must contain.
        compiled: whether the program is also run with ``compile=True``.
        around: a context in which the program is made and run.
    """
    if outcome not in OUTCOMES:
        raise ValueError(f"outcome: expected one of {OUTCOMES}, got {outcome!r}.")

    def enter(make: Callable[[], Setup]) -> Callable[[], Setup]:
        name = make.__name__
        if name in PROGRAMS:
            raise ValueError(f"two programs are called {name!r}.")
        theme = make.__module__.rpartition(".")[2].replace("_", " ")
        PROGRAMS[name] = Program(name, theme, make, outcome, says, compiled, around)
        return make

    return enter


# -- batches -----------------------------------------------------------------------------------------------------------


def call(*args: Any, **kwargs: Any) -> Call:
    return Call(args, kwargs)


def reals(*shape: int, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)  # the same data on every device
    values = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
    return values.to(torch.get_default_device(), torch.get_default_dtype())


def bits(*shape: int, seed: int = 7) -> Tensor:
    return (reals(*shape, seed=seed) > 0).to(torch.get_default_dtype())


def fresh(*shape: int) -> list[Call]:
    """Other data at every step, of one shape."""
    return [call(reals(*shape, seed=i)) for i in range(STEPS)]


def ragged(*shape: int) -> list[Call]:
    """Epochs of four batches, the last of which is shorter."""
    return [call(reals(shape[0] - 2 * (i % 4 == 3), *shape[1:], seed=i)) for i in range(STEPS)]


def without_arguments() -> list[Call]:
    return [call()] * STEPS


# -- running -----------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    losses: list[Any]
    tensors: dict[str, Tensor]
    said: list[warnings.WarningMessage]


def by_pyro(entry: Program) -> Result:
    return _run(entry, lambda setup, *rest: SVI(setup.model, setup.guide, *rest))[0]


def by_compiled(entry: Program, **options: Any) -> tuple[Result, pv.CompiledSVI]:
    result, svi = _run(entry, lambda setup, *rest: pv.CompiledSVI(setup.model, setup.guide, *rest, **options))
    return result, svi


def outcome(entry: Program, *, tolerance: float | None = None, **options: Any) -> tuple[str, str]:
    """Run a program both ways and say what became of it.

    Args:
        entry: the program.
        tolerance: largest relative difference of a loss; None asks for equal losses, parameters and buffers.
        options: for ``CompiledSVI``.

    Returns:
        One of ``OUTCOMES`` (``CAPTURED`` for ``NOTICED`` too), or what went wrong; and the warning or error.
    """
    expected = by_pyro(entry)
    try:
        got, svi = by_compiled(entry, **options)
    except pv.CaptureError as error:
        return AUDIT, str(error)  # nothing else stops a program that may be left to Pyro
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {error}"
    exact = tolerance is None
    difference = _difference(got, expected, 0.0 if exact else tolerance, exact)
    if difference and not (exact and not _difference(got, expected, ROUNDING, True)):
        return "different", difference
    ours = [str(w.message) for w in got.said if issubclass(w.category, pv.CaptureWarning)]
    known = {str(w.message) for w in expected.said}
    other = [str(w.message) for w in got.said if not issubclass(w.category, pv.CaptureWarning)]
    if ours:
        return LEFT, "\n".join(ours)
    strange = [text for text in other if text not in known]
    if strange:
        return "warned", "\n".join(strange)
    if not svi.captures:
        return "left to Pyro without a word", ""
    return (ROUNDED, difference) if difference else (CAPTURED, "")


def _run(entry: Program, make_svi: Callable[..., Any]) -> tuple[Result, Any]:
    pyro.clear_param_store()
    with entry.around(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pyro.set_rng_seed(0)
        setup = entry.make()
        loss = Trace_ELBO() if setup.loss is None and setup.loss_and_grads is None else setup.loss
        optimizer = pv.Adam({"lr": 0.01}) if setup.optimizer is None else setup.optimizer
        svi = make_svi(setup, optimizer, loss, setup.loss_and_grads)
        pyro.set_rng_seed(1)
        if setup.run is not None:
            losses = setup.run(svi, setup.batches)
        else:
            losses = []
            for i, (args, kwargs) in enumerate(setup.batches):
                if setup.before_step is not None:
                    setup.before_step(svi, i)
                losses.append(svi.step(*args, **kwargs))
        return Result(losses, dict(_tensors(setup)), list(said)), svi


def _tensors(setup: Setup) -> Iterator[tuple[str, Tensor]]:
    for name, value in pyro.get_param_store().named_parameters():
        yield name, value.detach().clone()
    for i, module in enumerate(setup.modules):
        for name, value in module.state_dict().items():
            yield f"module {i}: {name}", value.detach().clone()
    for i, value in enumerate(setup.tensors):
        yield f"tensor {i}", value.detach().clone()


def _difference(got: Result, expected: Result, tolerance: float, parameters: bool) -> str:
    """Return the first relative difference beyond ``tolerance``, in words; empty if there is none.

    Args:
        got: one run.
        expected: the other.
        tolerance: 0 asks for the same bits.
        parameters: whether parameters and buffers are compared too.
    """
    for i, (g, e) in enumerate(zip(got.losses, expected.losses, strict=True)):
        pairs = zip(g, e, strict=True) if isinstance(e, tuple) else [(g, e)]
        for a, b in pairs:
            a, b = float(a), float(b)
            if not (a == b or abs(a - b) <= tolerance * max(1.0, abs(b))):
                return f"the loss of step {i} is {a!r}, Pyro's {b!r}"
    if not parameters:
        return ""
    if got.tensors.keys() != expected.tensors.keys():
        return f"other parameters: {sorted(got.tensors.keys() ^ expected.tensors.keys())}"
    for name, value in expected.tensors.items():
        a, b = got.tensors[name].to_dense(), value.to_dense()
        if not (torch.equal(a, b) or torch.allclose(a, b, rtol=tolerance, atol=tolerance)):
            return f"{name} ends {(a - b).abs().max():.3g} away from Pyro's"
    return ""
