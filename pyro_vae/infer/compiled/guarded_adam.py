"""The second half of a captured step: from gradients to new parameters, unless they are not finite."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from ..optim import FusedOptim


class GuardedAdam:
    """The update of a :class:`FusedOptim` that holds a fused ``torch.optim.Adam`` or ``AdamW``, by torch's own kernel.

    What ``optimizer.step()`` asks of Python anew at every step is found once here, and the flag that says whether the
    gradients are finite is read by the kernel, so that nobody waits for a GPU. The tensors are the optimiser's own,
    which may take ordinary steps in between, and its options are read at every step: schedulers need nothing else.

    Args:
        optim: where options and state live.
        params: the parameters to update; each must be registered with ``optim``.

    Source:
        D. P. Kingma, J. Ba (2015), Adam: A Method for Stochastic Optimization, algorithm 1; I. Loshchilov, F. Hutter
        (2019), Decoupled Weight Decay Regularization, algorithm 2.
    """

    def __init__(self, optim: FusedOptim, params: list[Tensor]) -> None:
        assert optim.optimizer is not None
        self.optim = optim
        self._decoupled = isinstance(optim.optimizer, torch.optim.AdamW)
        self._state = optim.optimizer.state
        place = {id(p): i for i, p in enumerate(params)}
        self._groups: list[tuple[dict[str, Any], list[Tensor], list[int], list[list[Tensor]]]] = []
        for group in optim.optimizer.param_groups:
            members = [p for p in group["params"] if id(p) in place]
            if members:
                state = [self._state_of(p, group) for p in members]
                lists = [[s[key] for s in state if key in s] for key in _STATE]
                self._groups.append((group, members, [place[id(p)] for p in members], lists))
        # What must stay as it is for this update to hold.
        self._params = params
        self._states = [self._state[p] for p in params]
        self._means = [state["exp_avg"] for state in self._states]
        self._options = [(id(g), g["amsgrad"], g["fused"], type(g["lr"])) for g in optim.optimizer.param_groups]

    @staticmethod
    def fits(optim: Any, params: list[Tensor]) -> bool:
        """Whether these parameters can be updated here, with this optimizer as it is."""
        if not isinstance(optim, FusedOptim) or optim.optimizer is None or not _one_kernel(optim, params):
            return False
        if type(optim.optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or _has_hooks(optim.optimizer):
            return False
        return all(
            group["fused"] and not any(isinstance(number, Tensor) for number in (group["lr"], *group["betas"]))
            for group in optim.optimizer.param_groups
        )

    def holds(self) -> bool:
        """Whether the optimizer's state, groups and options are still those that this update was made for."""
        optimizer = self.optim.optimizer
        if optimizer is None or optimizer.state is not self._state:  # load_state_dict makes a new one
            return False
        if _has_hooks(optimizer):
            return False
        if not all(map(operator.is_, map(self._state.get, self._params), self._states)):
            return False
        if not all(state.get("exp_avg") is mean for state, mean in zip(self._states, self._means, strict=True)):
            return False
        return [(id(g), g["amsgrad"], g["fused"], type(g["lr"])) for g in optimizer.param_groups] == self._options

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """As the torch optimiser would make it at its first step."""
        state: dict[str, Tensor] = self._state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            for key in _STATE[1:] if group["amsgrad"] else _STATE[1:3]:
                state[key] = torch.zeros_like(p, requires_grad=False)
        return state

    def __call__(self, grads: list[Tensor], count: Tensor, skip: Tensor, shrink: Tensor | None = None) -> None:
        """Update parameters and state in place; changes none of them where ``skip`` is 1."""
        for group, members, places, (steps, means, squares, largest) in self._groups:
            torch._foreach_add_(steps, [count] * len(steps))
            decoupled = self._decoupled or group.get("decoupled_weight_decay", False)
            kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
            kernel(
                members,
                [grads[i] for i in places],
                means,
                squares,
                largest,
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=group["amsgrad"],
                maximize=group["maximize"],
                grad_scale=shrink,
                found_inf=skip,
            )


def _has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether functions are called before or after a step of the optimizer."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


_STATE = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def _one_kernel(optim: FusedOptim, tensors: list[Tensor]) -> bool:
    """Whether one call of torch's kernel can update parameters like these: real ones, of one dtype on one device.

    The kernel scales gradients by a float32 number, which is too coarse for float64.
    """
    kinds = {(t.device, t.dtype) for t in tensors}
    scaled = optim.clip_norm is not None
    return len(kinds) == 1 and all(d.is_floating_point and not (scaled and d is torch.float64) for _, d in kinds)


def flags(optim: Any, grads: list[Tensor], ok: Tensor) -> list[Tensor]:
    """Return what the kernel is to know of the gradients, as operations for the graph that computes them.

    Returns:
        Three 0-dim float32 tensors: 1 where the step counts and 0 where it is skipped, the opposite, and (with
        ``clip_norm``) the number that the gradients are divided by for their global norm to be ``clip_norm`` at most.
        None where the optimizer is of another kind.
    """
    if not isinstance(optim, FusedOptim) or optim.pt_optim_constructor not in (torch.optim.Adam, torch.optim.AdamW):
        return []
    if not _one_kernel(optim, grads):
        return []
    count, skip = ok.float(), (~ok).float()
    if optim.clip_norm is None:
        return [count, skip]
    norm = sum((g.float() ** 2).sum() for g in grads) ** 0.5
    return [count, skip, ((norm + 1e-6) / optim.clip_norm).clamp(min=1.0)]
