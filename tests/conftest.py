"""Fixtures of all tests: an empty param store, a fixed seed, and the models and data of ``tests.helpers``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyro
import pytest
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

import pyro_vae as pv
from tests import helpers


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Run on one thread: the tests are many small operations, which more threads slow down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _fresh_start() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()
    was_off = not is_validation_enabled() or not torch.distributions.Distribution._validate_args
    pyro.enable_validation(True)
    assert not was_off, "the test leaves validation off, which later tests would take over"


@pytest.fixture
def linear_gaussian() -> helpers.LinearGaussian:
    return helpers.linear_gaussian()


@pytest.fixture
def make_vae() -> Callable[..., pv.VAE]:
    return helpers.small_vae


@pytest.fixture
def binary_data() -> Tensor:
    return helpers.binary_data()
