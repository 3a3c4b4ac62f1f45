"""One torch optimiser for all parameters behind Pyro's optimiser interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.params.param_store import module_from_param_with_module_name, normalize_param_name, user_param_name
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .._checks import require_positive_number
from .torch_optimizer import is_average, make_fused, options_for, plain_state, require_options

OptimArgs = dict[str, Any] | Callable[..., dict[str, Any]]

_NOT_STATE = {"params", "fused", "foreach", "capturable", "differentiable"}  # how it is computed, not what


class FusedOptim(PyroOptim):
    """A ``pyro.optim.PyroOptim`` that holds one torch optimiser for all parameters.

    Pyro's own wrapper makes one torch optimiser per tensor and clips each tensor by itself; here one (fused, where
    torch has it) optimiser updates all of them and gradients are clipped by their global norm. Works wherever a
    ``PyroOptim`` does, Pyro's own ``SVI`` included. Parameters that appear later join in.

    Args:
        torch_optimizer_class: such as ``torch.optim.SGD``.
        optim_args: its options, ``{"lr": 1e-3}``; or a function from a parameter's name (``"vae.encoder.weight"``) to
            them.
        clip_norm: largest Euclidean norm of all gradients together; None leaves them as they are.
        scheduler: makes a learning-rate scheduler from the torch optimiser, for instance
            ``lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)``; it is stepped after every
            optimiser step.

    Raises:
        TypeError: if ``optim_args`` is neither a dictionary nor callable.
        ValueError: if ``clip_norm`` is not positive.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> pyro.clear_param_store()
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> optim = FusedOptim(torch.optim.SGD, {"lr": 0.1}, clip_norm=1.0)
        >>> svi = SVI(model, lambda x: None, optim, Trace_ELBO())
        >>> _ = svi.step(torch.ones(5))
        >>> round(pyro.param("loc").item(), 3)  # the gradient, -5, was clipped to -1
        0.1
    """

    def __init__(
        self,
        torch_optimizer_class: Callable[..., Optimizer],
        optim_args: OptimArgs,
        *,
        clip_norm: float | None = None,
        scheduler: Callable[[Optimizer], Any] | None = None,
    ) -> None:
        if not (isinstance(optim_args, dict) or callable(optim_args)):
            raise TypeError(
                "optim_args: expected a dictionary of options such as {'lr': 1e-3}, or a function from a parameter's "
                f"name to one, got {type(optim_args).__name__}."
            )
        if clip_norm is not None:
            require_positive_number("clip_norm", clip_norm)
        if isinstance(optim_args, dict):
            require_options(torch_optimizer_class, optim_args)
        super().__init__(torch_optimizer_class, optim_args)
        self.clip_norm = clip_norm
        self.optimizer: Optimizer | None = None
        self.scheduler: Any = None
        self._make_scheduler = scheduler
        self._names: dict[Tensor, str] = {}  # a name is kept from first sight: the store may forget it later
        self._latest: dict[str, Tensor] = {}  # the tensor that last took a name
        self._group_of: dict[Tensor, dict[str, Any]] = {}
        self._groups: list[tuple[dict[str, Any], dict[str, Any]]] = []  # (options as asked for, torch's group)
        self._pending: dict[str, Any] = {"params": {}, "options": {}, "scheduler": None}

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """One step on ``params``, from their ``.grad``; parameters not seen before are taken in first."""
        params = [p for p in params if p in self._names or not is_average(p)]
        self.register(params)
        if self.optimizer is None:  # a program without parameters
            return
        if self.clip_norm is not None:
            gradients = [p for p in self._in_order(params) if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(gradients, self.clip_norm)
        given = set(map(id, params))
        # One torch optimizer steps whatever has a gradient; as in Pyro, only the parameters of this step move.
        others = {p: p.grad for p in self._names if p.grad is not None and id(p) not in given}
        for p in others:
            p.grad = None
        self.optimizer.step(*args, **kwargs)
        for p, grad in others.items():
            p.grad = grad
        self.step_scheduler()

    def step_scheduler(self) -> None:
        """Moves the learning rate on by one step; called for you after every optimiser step."""
        if self.scheduler is not None:
            self.scheduler.step()

    def register(self, params: Iterable[Tensor]) -> None:
        """Takes in the parameters not seen before, with the state that :meth:`set_state` left for them.

        Raises:
            ValueError: if a parameter has no name in Pyro's parameter store, or comes with options of its own after the
                learning-rate scheduler was made.
        """
        new = [p for p in params if p not in self._names]
        if not new:
            return
        for p in new:
            name = pyro.get_param_store().param_name(p)
            if name is None:
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} is not in Pyro's parameter store. "
                    "Register it with pyro.param or pyro.module."
                )
            self._names[p] = name
            self._latest[name] = p
        for p in self._in_order(new):
            self._add(p)
        if self.scheduler is None and self._make_scheduler is not None:
            self.scheduler = self._new_scheduler()
        for p in new:
            self._restore(self._names[p])
        self._restore_scheduler()

    def get_state(self) -> dict[str, Any]:
        """State by parameter name: copies of tensors and plain values only.

        Returns:
            ``{"params": {name: {key: tensor}}, "options": {name: {"lr": ...}}, "scheduler": {...} or None}``; what
            :meth:`set_state` was given and no parameter has claimed yet is part of it.
        """
        params = {name: dict(state) for name, state in self._pending["params"].items()}
        options = {name: dict(values) for name, values in self._pending["options"].items()}
        for name, p in self._latest.items():
            if self.optimizer is not None:
                state = self.optimizer.state.get(p, {})
                params[name] = {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in state.items()}
                options[name] = plain_state({k: v for k, v in self._group_of[p].items() if k not in _NOT_STATE})
        scheduler = self._pending["scheduler"] if self.scheduler is None else plain_state(self.scheduler.state_dict())
        return {"params": params, "options": options, "scheduler": scheduler}

    def set_state(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up a state of :meth:`get_state`: at once for known parameters, for the others when they appear.

        Raises:
            ValueError: if the state is not one of :meth:`get_state`, or its tensors have another shape than the
                parameter.
        """
        if set(state_dict) != {"params", "options", "scheduler"}:
            raise ValueError(
                "state_dict: expected the keys 'params', 'options' and 'scheduler' of "
                f"{type(self).__name__}.get_state(), "
                f"got {sorted(map(str, state_dict))[:5]}."
            )
        self._pending = {key: state_dict[key] for key in ("params", "options", "scheduler")}
        self._pending["params"] = dict(self._pending["params"])
        self._pending["options"] = dict(self._pending["options"])
        for name in self._latest:
            if name not in self._pending["params"]:  # the state was taken before this parameter's first step
                self._pending["params"][name] = {}
                self._pending["options"][name] = self._options(name)
            self._restore(name)
        if self.scheduler is not None and self._pending["scheduler"] is None:
            self.scheduler = self._new_scheduler()
        self._restore_scheduler()

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Writes the state to a file that ``torch.load(..., weights_only=True)`` reads."""
        torch.save(self.get_state(), filename)

    def load(self, filename: str | os.PathLike[str], map_location: Any = None) -> None:
        """Takes up the state that :meth:`save` wrote."""
        self.set_state(torch.load(filename, map_location=map_location, weights_only=True))

    # -- the one torch optimiser -----------------------------------------------------------------------------------

    def _in_order(self, params: Iterable[Tensor]) -> list[Tensor]:
        """By name: Pyro hands over a set, whose order differs from run to run."""
        return sorted(params, key=self._names.__getitem__)

    def _options(self, name: str) -> dict[str, Any]:
        options = self.pt_optim_args
        if callable(options):
            if self.pt_optim_args_argc == 1:
                options = options(normalize_param_name(name))
            else:  # Pyro's older form: (module name, parameter name)
                options = options(module_from_param_with_module_name(name), user_param_name(name))
            if not isinstance(options, dict):
                raise TypeError(f"optim_args({name!r}): expected a dictionary, got {type(options).__name__}.")
        return options

    def _add(self, p: Tensor) -> None:
        options = options_for(self.pt_optim_constructor, self._options(self._names[p]), p)
        if self.optimizer is None:
            self.optimizer = make_fused(self.pt_optim_constructor, [{"params": [p], **options}])
        else:
            # A parameter with known options joins their group, so that a scheduler's rate holds for it too.
            found = next((group for asked, group in self._groups if asked == options), None)
            if found is None and self.scheduler is not None:
                raise ValueError(
                    f"parameter {self._names[p]!r} appeared after the learning-rate scheduler was made, with "
                    f"options of its own: {options}. Give it the options of an earlier parameter, or drop the "
                    "scheduler."
                )
            if found is not None:
                found["params"].append(p)
                self._group_of[p] = found
                return
            self.optimizer.add_param_group({"params": [p], **options})
        group = self.optimizer.param_groups[-1]
        self._groups.append((dict(options), group))
        self._group_of[p] = group

    def _new_scheduler(self) -> Any:
        if self._make_scheduler is None or self.optimizer is None:
            return None
        scheduler = self._make_scheduler(self.optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                "scheduler: ReduceLROnPlateau needs a measured loss at every step. Step it yourself after each epoch, "
                "on this object's .optimizer."
            )
        return scheduler

    def _restore(self, name: str) -> None:
        """Writes the pending state of one parameter, in place where a tensor is there already."""
        p = self._latest[name]
        optimizer = self.optimizer
        if optimizer is None:
            return
        for key, value in self._pending["options"].pop(name, {}).items():
            self._group_of[p][key] = value
        pending = self._pending["params"].pop(name, None)
        if pending is None:
            return
        if not pending:
            optimizer.state.pop(p, None)
        state = optimizer.state[p] if pending else {}
        group = self._group_of[p]
        for key, value in pending.items():
            if isinstance(value, Tensor):
                if value.dim() and value.shape != p.shape:
                    raise ValueError(
                        f"state_dict: {key!r} of parameter {name!r} has shape {tuple(value.shape)}, "
                        f"but the parameter has shape {tuple(p.shape)}. The state belongs to another model."
                    )
                here = state.get(key)
                if isinstance(here, Tensor):
                    here.copy_(value)
                    continue
                on_device = key != "step" or group.get("fused") or group.get("capturable")
                dtype = p.dtype if value.dim() and value.is_floating_point() else value.dtype
                value = value.detach().clone().to(device=p.device if on_device else value.device, dtype=dtype)
            state[key] = value

    def _restore_scheduler(self) -> None:
        if self.scheduler is not None and self._pending["scheduler"] is not None:
            self.scheduler.load_state_dict({**self.scheduler.state_dict(), **self._pending["scheduler"]})
            self._pending["scheduler"] = None


def Adam(
    optim_args: OptimArgs,
    *,
    clip_norm: float | None = None,
    scheduler: Callable[[Optimizer], Any] | None = None,
) -> FusedOptim:
    """Adam for all parameters at once; see :class:`FusedOptim`.

    Args:
        optim_args: options of ``torch.optim.Adam``, ``{"lr": 1e-3}``; or a function from a parameter's name to them.
        clip_norm: largest Euclidean norm of all gradients together; None leaves them as they are.
        scheduler: makes a learning-rate scheduler from the torch optimiser; stepped after every optimiser step.

    Returns:
        A ``pyro.optim.PyroOptim``.

    Example:
        >>> optim = Adam({"lr": 1e-3}, clip_norm=10.0)
        >>> optim.get_state()
        {'params': {}, 'options': {}, 'scheduler': None}

    Source:
        D. P. Kingma, J. Ba (2015), Adam: A Method for Stochastic Optimization, algorithm 1.
    """
    return FusedOptim(torch.optim.Adam, optim_args, clip_norm=clip_norm, scheduler=scheduler)
