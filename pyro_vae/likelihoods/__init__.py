"""Likelihoods p(x|z): modules whose ``forward(z, *given)`` returns a distribution over one datum.

Every density is normalised and is zero outside its support: there ``log_prob`` is minus infinity, and with Pyro's
validation on (the default) it raises a ``ValueError`` that names the value and the fix.
"""

from __future__ import annotations

from .bernoulli import BernoulliLikelihood
from .beta import BetaLikelihood
from .categorical import CategoricalLikelihood
from .continuous_bernoulli import ContinuousBernoulliLikelihood
from .discretized_logistic import DiscretizedLogisticLikelihood
from .gaussian import GaussianLikelihood
from .laplace import LaplaceLikelihood
from .mixed import MixedLikelihood
from .negative_binomial import NegativeBinomialLikelihood
from .observation import observed_elements
from .poisson import PoissonLikelihood
from .student_t import StudentTLikelihood
from .zero_inflated_negative_binomial import ZeroInflatedNegativeBinomialLikelihood

__all__ = [
    "BernoulliLikelihood",
    "BetaLikelihood",
    "CategoricalLikelihood",
    "ContinuousBernoulliLikelihood",
    "DiscretizedLogisticLikelihood",
    "GaussianLikelihood",
    "LaplaceLikelihood",
    "MixedLikelihood",
    "NegativeBinomialLikelihood",
    "PoissonLikelihood",
    "StudentTLikelihood",
    "ZeroInflatedNegativeBinomialLikelihood",
    "observed_elements",
]
