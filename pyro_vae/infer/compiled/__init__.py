"""SVI whose step is captured once as a graph of tensor operations, compiled, and run as such from then on."""

from .svi import CompiledSVI
from .trace import CaptureError

__all__ = ["CaptureError", "CompiledSVI"]
