"""SVI whose step is captured once as a graph of tensor operations, compiled, and run as such from then on."""

from __future__ import annotations

from .errors import CaptureError, CaptureWarning
from .svi import CompiledSVI

__all__ = ["CaptureError", "CaptureWarning", "CompiledSVI"]
