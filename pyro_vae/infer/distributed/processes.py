"""The processes that train together: joining them, and which one this is."""

from __future__ import annotations

import importlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = ["processes", "rank", "world_size"]


def rank() -> int:
    """Number of this process, from 0; 0 where it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together; 1 where this one is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def processes(*, timeout: float = 300.0) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, until the end of the block; without ``torchrun`` stay alone.

    CPU tensors travel by gloo and CUDA ones by NCCL, each process having the GPU of its local rank.

    Args:
        timeout: seconds that a process waits for the others before it gives them up: more than the longest that they
            are ever apart (a compilation, a checkpoint on a slow disk).

    Raises:
        ValueError: ``timeout`` is not positive.

    Example:
        >>> with processes():
        ...     rank(), world_size()
        (0, 1)
    """
    if not timeout > 0:
        raise ValueError(f"timeout: expected a number of seconds above 0, got {timeout!r}.")
    started = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if not started or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    # Functions in there take the group of the moment of import for a default argument: imported later (as happens in
    # Pyro's first step), they would keep it, with threads that may abort the interpreter at its end.
    with suppress(ImportError):
        importlib.import_module("torch.distributed.nn.functional")
    store, number, count = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    store = _fresh_part(store, number, count, timeout)
    dist.init_process_group(store=store, rank=number, world_size=count, timeout=timedelta(seconds=timeout))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.code, int) and stop.code > 128:  # a polite stop, after the same step in all of them
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()  # not after another exception: it may wait for processes that are no more


def _end_with_parent(parent: int) -> None:
    """End this process within a second after ``torchrun``, its parent, was killed.

    Else it would go on, write checkpoints, and disturb the run that is started next.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os.write(2, b"pyro_vae: torchrun has ended, and so does this process. Start again, and resume.\n")
    os._exit(1)


def _fresh_part(store: dist.Store, number: int, count: int, timeout: float) -> dist.Store:
    """A part of the store in which no process wrote before it was started again.

    ``torchrun --max-restarts`` keeps one store over all restarts, and there stand the addresses of processes that are
    dead; its count of restarts is not the same on all machines (pytorch issue 135712). So the first process makes up a
    new name, and gives it to whoever shows a name that is as new.
    """
    own = uuid.uuid4().hex
    if number > 0:
        store.set(f"process {number}", own)
        name = store.get(f"for {own}").decode()  # waits for it
        store.set(f"{number} took {name}", "")
        return dist.PrefixStore(name, store)
    give_up = time.monotonic() + timeout
    for other in range(1, count):
        while not store.check([f"{other} took {own}"]):
            if store.check([f"process {other}"]):
                store.set(f"for {store.get(f'process {other}').decode()}", own)
            time.sleep(0.005)
            if time.monotonic() > give_up:
                raise RuntimeError(f"process {other} of {count} did not come within timeout={timeout:g} seconds.")
    return dist.PrefixStore(own, store)
