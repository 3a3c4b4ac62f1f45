"""Variational autoencoders for Pyro."""

from __future__ import annotations

from . import data, plots
from ._version import __version__
from .conditional import Conditional
from .evaluate import Bounds, bounds, elbo, iwae, log_likelihood, log_weights
from .infer import (
    Adam,
    CaptureError,
    CaptureWarning,
    CompiledSVI,
    FusedOptim,
    TraceIWAE_ELBO,
    TraceSTL_ELBO,
    distributed,
)
from .likelihoods import (
    BernoulliLikelihood,
    BetaLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from .models import VAE, latent_scale, module
from .networks import MLP, AnyLeadingDims, ConvDecoder, ConvEncoder, GatedMLP
from .posteriors import DiagonalNormalPosterior
from .priors import StandardNormalPrior
from .train import (
    Callback,
    Checkpoint,
    CSVLog,
    EarlyStopping,
    History,
    LearningRate,
    Run,
    SamplePictures,
    TensorBoard,
    cyclical,
    fit,
    linear_warmup,
    one_cycle,
    read_checkpoint,
)

__all__ = [
    "MLP",
    "VAE",
    "Adam",
    "AnyLeadingDims",
    "BernoulliLikelihood",
    "BetaLikelihood",
    "Bounds",
    "CSVLog",
    "Callback",
    "CaptureError",
    "CaptureWarning",
    "CategoricalLikelihood",
    "Checkpoint",
    "CompiledSVI",
    "Conditional",
    "ContinuousBernoulliLikelihood",
    "ConvDecoder",
    "ConvEncoder",
    "DiagonalNormalPosterior",
    "EarlyStopping",
    "FusedOptim",
    "GatedMLP",
    "GaussianLikelihood",
    "History",
    "LaplaceLikelihood",
    "LearningRate",
    "NegativeBinomialLikelihood",
    "PoissonLikelihood",
    "Run",
    "SamplePictures",
    "StandardNormalPrior",
    "StudentTLikelihood",
    "TensorBoard",
    "TraceIWAE_ELBO",
    "TraceSTL_ELBO",
    "__version__",
    "bounds",
    "cyclical",
    "data",
    "distributed",
    "elbo",
    "fit",
    "iwae",
    "latent_scale",
    "linear_warmup",
    "log_likelihood",
    "log_weights",
    "module",
    "one_cycle",
    "plots",
    "read_checkpoint",
]
