"""How a story is fitted: objectives, compiled SVI, optimizers, importance weights, several processes."""

from .compiled import CaptureError, CaptureWarning, CompiledSVI
from .globals import AutoGlobalGuide, with_globals
from .importance import trace_log_weights
from .objectives import (
    TraceFreeBits_ELBO,
    TraceIWAE_ELBO,
    TraceMMD,
    TraceRenyi_ELBO,
    TraceSTL_ELBO,
    TraceTC_ELBO,
    TraceWakeSleep,
)
from .optim import Adam, FusedOptim

__all__ = [
    "Adam",
    "AutoGlobalGuide",
    "CaptureError",
    "CaptureWarning",
    "CompiledSVI",
    "FusedOptim",
    "TraceFreeBits_ELBO",
    "TraceIWAE_ELBO",
    "TraceMMD",
    "TraceRenyi_ELBO",
    "TraceSTL_ELBO",
    "TraceTC_ELBO",
    "TraceWakeSleep",
    "trace_log_weights",
    "with_globals",
]
