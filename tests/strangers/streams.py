"""State that every run of the model changes: counters, iterators, generators, caches."""

from __future__ import annotations

import collections
import itertools
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .runner import CAPTURED, LEFT, Setup, fresh, program, reals, without_arguments
from .small import guide, observe


@program(LEFT, says="count")
def a_counter() -> Setup:
    """A counter in an attribute"""

    class Story:
        count = 0

        def model(self, x: Tensor) -> None:
            self.count += 1
            observe(x, 1.0 / self.count)

    return Setup(Story().model, guide, fresh(5))


@program(LEFT, says="writes to an entry of a list")
def a_counter_in_a_list() -> Setup:
    """A counter in a list"""
    calls = [0]

    def model(x: Tensor) -> None:
        calls[0] += 1
        observe(x, 1.0 / calls[0])

    return Setup(model, guide, fresh(5))


@program(LEFT, says="calls")
def a_counter_in_a_closure() -> Setup:
    """A counter in a closed-over variable"""
    calls = 0

    def model(x: Tensor) -> None:
        nonlocal calls
        calls += 1
        observe(x, 1.0 / calls)

    return Setup(model, guide, fresh(5))


@program(LEFT, says="list_iterator")
def an_iterator() -> Setup:
    """`next()` of an iterator over data"""
    stream = iter([reals(5, seed=i) for i in range(400)])

    def model() -> None:
        observe(next(stream), 1.0)

    return Setup(model, guide, without_arguments())


@program(LEFT, says="itertools.count")
def a_count() -> Setup:
    """`next()` of `itertools.count`"""
    steps = itertools.count(1)

    def model(x: Tensor) -> None:
        observe(x, 1.0 / next(steps))

    return Setup(model, guide, fresh(5))


@program(LEFT, says="generator")
def a_generator_function() -> Setup:
    """`next()` of a generator function"""

    def schedule() -> Any:
        weight = 1.0
        while True:
            yield weight
            weight *= 0.9

    weights = schedule()
    return Setup(lambda x: observe(x, next(weights)), guide, fresh(5))


@program(LEFT, says="generator")
def a_minibatch_by_numpy() -> Setup:
    """A mini-batch drawn inside the model by `np.random.default_rng`"""
    generator = np.random.default_rng(0)
    data = reals(30)

    def model() -> None:
        rows = torch.from_numpy(generator.choice(30, 5, replace=False))
        observe(data[rows], 1.0)

    return Setup(model, guide, without_arguments())


@program(LEFT, says="numpy")
def global_numpy_random_numbers() -> Setup:
    """A number of `np.random`"""
    return Setup(lambda x: observe(x, float(np.random.rand())), guide, fresh(5))


@program(LEFT, says="generator")
def a_generator_of_python() -> Setup:
    """A number of `random.Random`"""
    generator = random.Random(0)
    return Setup(lambda x: observe(x, generator.random()), guide, fresh(5))


@program(LEFT, says="random")
def global_python_random_numbers() -> Setup:
    """A number of `random`"""
    return Setup(lambda x: observe(x, random.random()), guide, fresh(5))


@program(LEFT, says="enerator")
def a_generator_of_torch() -> Setup:
    """Numbers of a `torch.Generator` of one's own"""
    generator = torch.Generator().manual_seed(3)
    return Setup(lambda x: observe(x + torch.randn(5, generator=generator), 1.0), guide, fresh(5))


@program(LEFT, says="seed")
def a_seed_in_the_guide() -> Setup:
    """A seed set inside the guide"""

    def seeded(x: Tensor) -> None:
        torch.manual_seed(0)
        guide()

    return Setup(lambda x: observe(x, 1.0), seeded, fresh(5))


@program(LEFT, says="changes state")
def a_history_in_a_list() -> Setup:
    """A model that appends what it saw to a list"""
    seen: list[int] = []

    def model(x: Tensor) -> None:
        seen.append(len(x))
        observe(x, 1.0 / len(seen))

    return Setup(model, guide, fresh(5))


@program(CAPTURED)
def a_lazy_cache() -> Setup:
    """A grid made at the first call and kept in an attribute"""

    class Story:
        grid: Tensor | None = None

        def model(self, x: Tensor) -> None:
            if self.grid is None:
                self.grid = torch.linspace(0.5, 1.0, 5)
            observe(x, self.grid)

    return Setup(Story().model, guide, fresh(5))


@program(LEFT, says="writes to an entry of a defaultdict")
def a_memo_in_a_defaultdict() -> Setup:
    """Numbers of calls kept in a `defaultdict`"""
    counts: dict[str, int] = collections.defaultdict(int)

    def model(x: Tensor) -> None:
        counts["model"] += 1
        observe(x, 1.0 / counts["model"])

    return Setup(model, guide, fresh(5))


@program(CAPTURED)
def a_running_mean() -> Setup:
    """A buffer that the model updates in place"""

    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def model(self, x: Tensor) -> None:
            self.mean.mul_(0.9).add_(0.1 * x.mean())
            observe(x - self.mean, 1.0)

    story = Centered()
    return Setup(story.model, guide, fresh(5), modules=(story,))


@program(LEFT, says="mean")
def a_running_mean_bound_anew() -> Setup:
    """A buffer that the model binds to a new tensor at every call"""

    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def model(self, x: Tensor) -> None:
            self.mean = 0.9 * self.mean + 0.1 * x.mean()
            observe(x - self.mean, 1.0)

    story = Centered()
    return Setup(story.model, guide, fresh(5), modules=(story,))
