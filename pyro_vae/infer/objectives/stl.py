"""The evidence lower bound with the path gradient."""

from __future__ import annotations

from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger

from ..path_gradient import path_log_probs

__all__ = ["TraceSTL_ELBO"]


class TraceSTL_ELBO(Trace_ELBO):
    r"""``Trace_ELBO`` with the gradient that sticks the landing: the same bound, less noise near the optimum.

    The gradient of :math:`\log q_\phi(z)` at a reparameterised draw :math:`z = z_\phi(\epsilon)` has two parts, along
    the path and the score,

    .. math:: \nabla_\phi \log q_\phi(z_\phi(\epsilon)) =
        \nabla_z \log q_\phi(z) \, \nabla_\phi z_\phi(\epsilon) + (\nabla_\phi \log q_\phi)(z)

    of which the score is zero on average: pure noise, and left out here. Where q is the exact posterior, what remains
    is zero for *every* draw, also where one latent variable depends on another, and for flows; and it becomes small as
    q comes near. The value is ``Trace_ELBO``'s, draw by draw.

    Far from the optimum it can be the noisier gradient: with q far too narrow, the path of log q is steep, and the
    score would have cancelled it.

    A guide with several latent variables is run twice a step, the second time at the first one's draws with detached
    parameters; its layers with batch normalization then update their running statistics twice, and dropout in it is
    refused. Where the score may be more than noise, or cannot be told apart, it stays in, as in ``Trace_ELBO``: latent
    variables without a reparameterised sampler, straight-through ones, a ``Delta`` that brings its own log-density, a
    support that depends on the parameters (``Uniform``), a flow whose transforms have no inverse or do not take all of
    the real line.

    Args:
        num_particles: as in ``pyro.infer.Trace_ELBO``, and so are all other arguments.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> pyro.clear_param_store()
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     scale = pyro.param("scale", torch.tensor(0.5**0.5))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, scale))
        >>> loss = TraceSTL_ELBO().differentiable_loss(model, guide, torch.tensor([0.0, 1.0]))
        >>> loss.backward()  # the guide is the exact posterior: no gradient, whatever is drawn
        >>> bool(pyro.param("scale").grad.abs() < 1e-5)
        True

    Source:
        G. Roeder, Y. Wu, D. Duvenaud (2017), Sticking the Landing: Simple, Lower-Variance Gradient Estimators for
        Variational Inference, equation 8.
    """

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super()._get_trace(model, guide, args, kwargs)
        recorded = guide if isinstance(poutine.unwrap(guide), Messenger) else poutine.trace(guide)
        model_trace, guide_trace = super()._get_trace(model, recorded, args, kwargs)
        full = guide_trace if recorded is guide else recorded.trace  # with subsamples, which the former leaves out
        for name, log_q in path_log_probs(guide, full, args, kwargs).items():
            site = guide_trace.nodes[name]
            log_prob, score_function, _ = site["score_parts"]
            entropy = scale_and_mask(log_q, site["scale"], site["mask"])
            site["score_parts"] = ScoreParts(log_prob, score_function, entropy)
        return model_trace, guide_trace
