"""Objectives that Pyro lacks, one file each; they work in Pyro's ``SVI`` too."""

from .free_bits import TraceFreeBits_ELBO
from .iwae import TraceIWAE_ELBO
from .mmd import TraceMMD
from .renyi import TraceRenyi_ELBO
from .stl import TraceSTL_ELBO
from .total_correlation import TraceTC_ELBO
from .wake_sleep import TraceWakeSleep

__all__ = [
    "TraceFreeBits_ELBO",
    "TraceIWAE_ELBO",
    "TraceMMD",
    "TraceRenyi_ELBO",
    "TraceSTL_ELBO",
    "TraceTC_ELBO",
    "TraceWakeSleep",
]
