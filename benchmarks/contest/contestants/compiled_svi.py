"""pyro_vae's ``CompiledSVI`` in the place of ``SVI``: the same model and guide, one Adam for all parameters."""

from __future__ import annotations

from typing import Literal

import pyro
from pyro.infer import Trace_ELBO

from contest.contestants.pyro_svi import story
from contest.problem import LEARNING_RATE, Problem, Run
from contest.torch_parts import batches, loop
from pyro_vae.infer import Adam, CompiledSVI


def compiled_svi(problem: Problem) -> Run:
    """Products in float32."""
    return _compiled(problem)


def compiled_svi_bf16(problem: Problem) -> Run:
    """Products in bfloat16, parameters and optimiser in float32."""
    return _compiled(problem, precision="bf16")


def _compiled(problem: Problem, precision: Literal["float32", "bf16"] = "float32") -> Run:
    pyro.enable_validation(True)  # Pyro's default
    model, guide = story(problem)
    svi = CompiledSVI(model, guide, Adam({"lr": LEARNING_RATE}), Trace_ELBO(), precision=precision, compile_after=1)
    return loop(svi.update, batches(problem))
