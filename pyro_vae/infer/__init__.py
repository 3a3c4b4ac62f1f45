"""How a story is fitted: objectives, compiled SVI, optimisers."""

from pyro_vae.infer.capture import CaptureError
from pyro_vae.infer.compiled import CompiledSVI
from pyro_vae.infer.objectives import TraceIWAE_ELBO, TraceSTL_ELBO
from pyro_vae.infer.optim import Adam, FusedOptim
from pyro_vae.infer.weights import trace_log_weights

__all__ = ["Adam", "CaptureError", "CompiledSVI", "FusedOptim", "TraceIWAE_ELBO", "TraceSTL_ELBO", "trace_log_weights"]
