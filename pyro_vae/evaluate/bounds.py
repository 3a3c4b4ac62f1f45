"""Bounds over a whole data set, in bounded memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm.auto import tqdm

from .._checks import require_positive_int
from ..infer.compiled.bfloat16 import Bfloat16Products
from ..infer.compiled.undo import undone
from ..infer.importance import weigh
from .captured import captured_pass
from .data import Data

__all__ = ["Bounds", "bounds", "bytes_created", "log_likelihood"]

# An evaluation is captured, and then compiled, from so many bytes of created tensors on. Capturing costs what Pyro
# takes to create about the first number, and the C++ compiler saves its time on about the second.
_BYTES_TO_CAPTURE, _BYTES_TO_COMPILE = 2**32, 2**35


class Bounds(NamedTuple):
    """Both bounds on log p(x) of each datum, ``(N,)`` each, nats, higher is better, from the same draws."""

    elbo: Tensor
    iwae: Tensor


@torch.no_grad()
def bounds(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_particles: int = 1000,
    plate: str = "data",
    max_bytes: int = 256 * 2**20,
    compile: bool | Literal["graph"] = True,
    precision: Literal["float32", "bf16"] = "float32",
    progress: bool = False,
    **kwargs: Any,
) -> Bounds:
    r"""The ELBO and the importance-weighted bound on log p(x) of every datum of a set, chunk by chunk.

    Both data and particles are cut, so that one pass of model and guide creates at most ``max_bytes`` of tensors; what
    a datum costs (the encoder) and a particle of it (the decoder) is measured on first small passes.

    A large evaluation captures one pass as a graph of tensor operations, and a larger one compiles it: from 4 GB and
    from 32 GB of tensors on that all passes together would create. Chunks then have one shape: the last one begins
    early, and what it computes twice is left out. Pyro validates every row once before, and the graph is compared with
    Pyro on a chunk of data. What cannot be captured is evaluated by Pyro.

    Draws come from torch's global generator, compiled or not; which draw belongs to which datum depends on the sizes of
    the chunks. A module's ``eval()`` is up to the caller: in training mode, batch normalization takes its statistics
    over a chunk.

    Args:
        model: p(x, z), as in ``log_weights``.
        guide: q(z|x).
        *args: data, handed to both functions: tensors ``(N, ...)``, or tuples, lists and dictionaries of them.
        num_particles: K, draws of the latent variables per datum.
        plate: name of the plate of the data, as in ``log_weights``.
        max_bytes: bound on the tensors that one pass creates, in bytes (at least one datum and particle is computed).
        compile: True; ``"graph"`` to run the captured graph without compiling it; False to leave every pass to Pyro.
        precision: ``"bf16"`` lets matrix products and convolutions take bfloat16 inputs; all else stays float32.
        progress: show a progress bar.
        **kwargs: handed to both functions, for each chunk as they are; but ``mask`` is cut with the data.

    Returns:
        ``Bounds(elbo, iwae)``, ``(N,)`` each, nats.

    Raises:
        TypeError, ValueError: there is no tensor of at least one row among the positional arguments, or one of another
            number of rows; the plate of the data has another size than they; a count below 1; as ``log_weights``.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(
        ...     pv.StandardNormalPrior(2),
        ...     pv.BernoulliLikelihood(pv.MLP(2, 6, hidden_dims=())),
        ...     pv.DiagonalNormalPosterior(pv.MLP(6, 4, hidden_dims=())),
        ... )
        >>> elbo, iwae = bounds(vae.model, vae.guide, torch.ones(5, 6), num_particles=10)
        >>> elbo.shape, iwae.shape
        (torch.Size([5]), torch.Size([5]))

    Source:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, equation 8 and section 5.
    """
    if compile not in (True, False, "graph"):
        raise ValueError(f"compile: expected True, False or 'graph', got {compile!r}.")
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision: expected 'float32' or 'bf16', got {precision!r}.")
    num_particles = require_positive_int("num_particles", num_particles)
    max_bytes = require_positive_int("max_bytes", max_bytes)
    data = Data(args, kwargs)
    nesting: int | None = None  # of the plates, once they are known

    def by_pyro(chunk: list[Tensor], particles: int) -> Tensor:
        nonlocal nesting
        chunk_args, chunk_kwargs = data.arguments(chunk)
        with Bfloat16Products() if precision == "bf16" else contextlib.nullcontext():
            found = weigh(model, guide, chunk_args, chunk_kwargs, particles, plate=plate, nesting=nesting)
        nesting = found.nesting
        rows, width = data.length(chunk), found.log_weights.shape[1]
        if width != rows:
            raise ValueError(
                f"model: expected one weight for each of {rows} rows of the data, got {width}. Put what belongs to a "
                "row in pyro.plate('data', len(x))."
            )
        return found.log_weights

    # Handlers around the call, poutine.trace say, are to see every pass.
    capture = bool(compile) and not poutine.runtime.am_i_wrapped()
    tolerance = 0.05 if precision == "bf16" else 1e-4
    passes = _prepare(data, by_pyro, (model, guide), num_particles, max_bytes, capture, compile != "graph", tolerance)
    return _run(data, passes, progress)


def log_likelihood(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    """The importance-weighted bound on log p(x) of every datum of a set: ``bounds(...).iwae``, ``(N,)``, nats."""
    return bounds(model, guide, *args, **kwargs).iwae


class _Passes(NamedTuple):
    """How an evaluation is cut into passes, and what computes one."""

    data: int  # of one pass
    particles: int  # of one pass
    num_particles: int  # of all passes over a datum
    by_pyro: Callable[[list[Tensor], int], Tensor]  # a chunk and a number of particles -> log-weights (K, B)
    captured: Callable[[list[Tensor]], Tensor] | None = None  # the same for chunks and particles of full size
    data_to_validate: int = 0  # at a time, where a captured graph leaves validation out


def _prepare(
    data: Data,
    by_pyro: Callable[[list[Tensor], int], Tensor],
    functions: tuple[Callable[..., Any], ...],
    num_particles: int,
    max_bytes: int,
    capture: bool,
    compile: bool,
    tolerance: float,
) -> _Passes:
    """Measure what a datum costs, cut the evaluation accordingly, and capture a pass of a large one."""
    per_datum, per_particle = bytes_created(by_pyro, data)

    def cut(most_bytes: int, particles: int = num_particles) -> tuple[int, int]:
        data_per_pass = min(data.rows, max(1, most_bytes // (per_datum + particles * per_particle)))
        # More than one datum a pass means that all their particles fit.
        room = (most_bytes - per_datum) // per_particle if data_per_pass == 1 else particles
        passes = math.ceil(particles / max(1, room))
        return data_per_pass, math.ceil(particles / passes)  # as even as can be

    total_bytes = data.rows * (per_datum + num_particles * per_particle)
    if capture and total_bytes >= _BYTES_TO_CAPTURE:
        size, particles = cut(max_bytes)
        captured = captured_pass(
            lambda chunk: by_pyro(chunk, particles),
            functions,
            data.chunk(0, size),
            data.chunk(data.rows - size, data.rows),
            compile=compile and total_bytes >= _BYTES_TO_COMPILE,
            tolerance=tolerance,
        )
        if captured is not None:
            # Half of the bytes, since `undone` may keep a second copy of what is written to.
            return _Passes(size, particles, num_particles, by_pyro, captured, cut(max_bytes // 2, particles=1)[0])
    return _Passes(*cut(max_bytes), num_particles, by_pyro)


def _run(data: Data, passes: _Passes, progress: bool) -> Bounds:
    """Both bounds of all data, chunk by chunk."""
    if passes.captured is not None:
        for first in range(0, data.rows, passes.data_to_validate):
            with undone(data.tensors):
                passes.by_pyro(data.chunk(first, first + passes.data_to_validate), 1)
    results = []
    with tqdm(total=data.rows, disable=not progress, unit="datum", mininterval=0.5, dynamic_ncols=True) as bar:
        for first in range(0, data.rows, passes.data):
            last = min(first + passes.data, data.rows)
            result = _by_graph(data, passes, first, last)
            if result is None or not _is_finite(result):  # Pyro says what is wrong, if something is
                result = _by_pyro(data, passes, first, last)
            results.append(result)
            bar.update(last - first)
    return Bounds(*(torch.cat(parts) for parts in zip(*results, strict=True)))


def _by_graph(data: Data, passes: _Passes, first: int, last: int) -> Bounds | None:
    if passes.captured is None:
        return None
    start = last - passes.data  # the last chunk begins early, to be of full size
    chunk = data.chunk(start, last)
    log_ws = (passes.captured(chunk) for _ in range(0, passes.num_particles, passes.particles))
    elbo, iwae = _joined(log_ws, passes.num_particles)
    return Bounds(elbo[first - start :], iwae[first - start :])


def _by_pyro(data: Data, passes: _Passes, first: int, last: int) -> Bounds:
    chunk, most, total = data.chunk(first, last), passes.particles, passes.num_particles
    return _joined((passes.by_pyro(chunk, min(most, total - k)) for k in range(0, total, most)), total)


def _joined(passes: Iterable[Tensor], num_particles: int) -> Bounds:
    """Both bounds of a chunk from passes over its particles; those beyond ``num_particles`` are left out."""
    total, log_total, left = torch.zeros(()), torch.tensor(-math.inf), num_particles
    for log_w in passes:
        log_w = log_w[:left]
        total = total.to(log_w) + log_w.sum(0)
        log_total = torch.logaddexp(log_total.to(log_w), log_w.logsumexp(0))
        left -= len(log_w)
    return Bounds(total / num_particles, log_total - math.log(num_particles))


def _is_finite(result: Bounds) -> bool:
    """Whether nothing is wrong; an ELBO is minus infinity where a particle alone is impossible."""
    return bool((result.iwae.isfinite() & ~result.elbo.isnan()).all())


def bytes_created(by_pyro: Callable[[list[Tensor], int], Tensor], data: Data) -> tuple[int, int]:
    """Bytes that a datum creates whatever its particles, and that each of its particles creates.

    Both are differences between passes, in which fixed costs cancel. Two data at least, for the sake of modules that
    take statistics over them.
    """

    def created(rows: int, particles: int) -> int:
        with undone(data.tensors), _CreatedBytes() as meter:
            by_pyro(data.repeated(rows), particles)
        return meter.total

    base = created(2, 1)
    per_particle = max(1, (created(2, 2) - base) // 2)
    return max(0, created(3, 1) - base - per_particle), per_particle


class _CreatedBytes(TorchDispatchMode):
    """Adds up the bytes of all results, views included: an upper bound on what a pass holds at once."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.total += value.numel() * value.element_size()
        return result
