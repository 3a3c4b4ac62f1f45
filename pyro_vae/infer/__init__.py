"""How a story is fitted: objectives, compiled SVI, optimizers, importance weights, several processes."""

from .compiled import CaptureError, CaptureWarning, CompiledSVI
from .importance import trace_log_weights
from .objectives import TraceIWAE_ELBO, TraceSTL_ELBO
from .optim import Adam, FusedOptim

__all__ = [
    "Adam",
    "CaptureError",
    "CaptureWarning",
    "CompiledSVI",
    "FusedOptim",
    "TraceIWAE_ELBO",
    "TraceSTL_ELBO",
    "trace_log_weights",
]
