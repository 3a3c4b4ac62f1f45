"""Adam's update as tensor operations, to be part of the graph of a whole step."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from pyro_vae.infer.optim import FusedOptim


class FoldedAdam:
    """The next update of a :class:`FusedOptim` that holds ``torch.optim.Adam`` or ``AdamW``, written out.

    It works on the very tensors that the torch optimiser keeps, so that folded and ordinary steps may alternate and a
    saved state knows no difference. Learning rate and betas are read from a tensor, which :meth:`refresh` keeps at
    what a scheduler (some cycle the betas too) or the user has set; the other options are constants of the graph.

    Args:
        optim: where the state lives.
        params: the parameters to update; each must be registered with ``optim``.

    Source:
        D. P. Kingma, J. Ba (2015), Adam: A Method for Stochastic Optimization, algorithm 1; I. Loshchilov, F. Hutter
        (2019), Decoupled Weight Decay Regularization, algorithm 2.
    """

    def __init__(self, optim: FusedOptim, params: list[Tensor]) -> None:
        assert optim.optimizer is not None
        self.clip_norm = optim.clip_norm
        self.groups: list[tuple[dict[str, Any], list[Tensor], Tensor]] = []
        self._current: list[tuple[float, float, float]] = []
        self.decoupled = isinstance(optim.optimizer, torch.optim.AdamW)
        self.state = optim.optimizer.state
        # Made while a graph is traced, but no part of it: traced, the learning rate would be a constant for ever.
        with disable_proxy_modes_tracing():
            self._gather(optim.optimizer.param_groups, params)

    def _gather(self, groups: list[dict[str, Any]], params: list[Tensor]) -> None:
        """Finds the groups of these parameters, and makes what state is still missing and the learning rates."""
        wanted = {id(p) for p in params}
        for group in groups:
            members = [p for p in group["params"] if id(p) in wanted]
            for p in members:
                if not self.state[p]:
                    on_device = p.device if group.get("fused") or group["capturable"] else torch.device("cpu")
                    self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=on_device)
                    self.state[p]["exp_avg"] = torch.zeros_like(p, requires_grad=False)
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p, requires_grad=False)
            if members:
                numbers = torch.tensor(_numbers(group), dtype=torch.float64, device=members[0].device)
                self.groups.append((group, members, numbers))
                self._current.append(_numbers(group))

    @staticmethod
    def fits(optim: Any) -> bool:
        """Whether this optimiser is an Adam that can be written out here."""
        if not isinstance(optim, FusedOptim) or optim.optimizer is None:
            return False
        if type(optim.optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
            return False
        return all(
            not (group["amsgrad"] or group["maximize"] or group["differentiable"] or isinstance(group["lr"], Tensor))
            for group in optim.optimizer.param_groups
        )

    def refresh(self) -> None:
        """Brings the graph's learning rates and betas up to date, without waiting for the device."""
        for i, (group, _, numbers) in enumerate(self.groups):
            wanted = _numbers(group)
            for j, value in enumerate(wanted):
                if value != self._current[i][j]:
                    numbers[j].fill_(value)
            self._current[i] = wanted

    def watched(self) -> Iterator[tuple[dict[Any, Any], Any]]:
        """The entries that must stay what they are for the graph to hold: options, and the tensors of the state."""
        for group, members, _ in self.groups:
            for key in ("eps", "weight_decay", "amsgrad", "maximize"):
                yield group, key
            for p in members:
                yield self.state, p
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    yield self.state[p], key

    def apply(self, grads: dict[Tensor, Tensor], ok: Tensor) -> None:
        """Updates parameters and state in place where ``ok`` (0-dim, bool), leaves them as they are where not."""
        if self.clip_norm is not None:
            norm = sum((g.float() ** 2).sum() for g in grads.values()) ** 0.5
            shrink = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            grads = {p: g * shrink.to(g.dtype) for p, g in grads.items()}
        for group, members, numbers in self.groups:
            decoupled = self.decoupled or group.get("decoupled_weight_decay", False)
            rate, beta1, beta2, *corrections = self._scalars(members, numbers, ok)
            sizes, roots = corrections[: len(members)], corrections[len(members) :]
            for p, size, root in zip(members, sizes, roots, strict=True):
                g, m, v = grads[p], self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]
                value = p
                if group["weight_decay"] and decoupled:
                    value = p * (1 - rate * group["weight_decay"])
                elif group["weight_decay"]:
                    g = g + group["weight_decay"] * p
                m_new = m + (1 - beta1) * (g - m)
                v_new = beta2 * v + (1 - beta2) * g * g
                value = value - size * m_new / (torch.sqrt(v_new) * root + group["eps"])
                p.copy_(torch.where(ok, value, p))
                m.copy_(torch.where(ok, m_new, m))
                v.copy_(torch.where(ok, v_new, v))

    def _scalars(self, members: list[Tensor], numbers: Tensor, ok: Tensor) -> tuple[Tensor, ...]:
        """Counts the step, and gives learning rate, both betas, and for each parameter (by its own count t) the step
        size lr / (1 - beta1^t) and then 1 / sqrt(1 - beta2^t); each 0-dim."""
        steps = []
        for p in members:
            steps.append(self.state[p]["step"] + ok)
            self.state[p]["step"].copy_(steps[-1])
        rate, beta1, beta2 = numbers.unbind()
        t = torch.stack(steps).to(device=numbers.device, dtype=torch.float64)
        row = torch.cat([numbers, rate / (1 - beta1**t), torch.rsqrt(1 - beta2**t)])
        # Inductor would repeat these powers for every few weights; what goes into a matrix product is computed once and
        # stored, and this product (the first row of two) changes nothing.
        row = torch.eye(2, device=row.device, dtype=row.dtype) @ torch.stack([row, row])
        return row[0].to(functools.reduce(torch.promote_types, (p.dtype for p in members))).unbind()


def _numbers(group: dict[str, Any]) -> tuple[float, float, float]:
    return float(group["lr"]), float(group["betas"][0]), float(group["betas"][1])


def all_finite(losses: list[Tensor], grads: list[Tensor]) -> Tensor:
    """Whether every loss and every gradient is finite, as one 0-dim tensor."""
    parts = [loss.detach().abs() for loss in losses]
    parts += [g.abs().sum() for g in grads]  # a sum of magnitudes is finite just where all of them are
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return torch.isfinite(total)


def cheapen_checks(graph: fx.GraphModule) -> fx.GraphModule:
    """Reads a weight's gradient for :func:`all_finite` off the two factors of its product, where those are smaller.

    No entry of ``a @ b`` exceeds ``sum|a| * sum|b|``, so where that is finite the product is: for a small batch two
    short sums in place of one over every weight.
    """
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.target is not aten.sum.default or node.args[0].target is not aten.abs.default:
            continue
        product = node.args[0].args[0]
        while product.target in (aten.detach.default, aten.t.default, aten.alias.default):
            product = product.args[0]
        if product.target is not aten.mm.default:
            continue
        sizes = [n.meta["val"].numel() for n in (*product.args, product)]
        if sizes[0] + sizes[1] >= sizes[2]:
            continue
        with graph.graph.inserting_before(node):
            sums = [
                graph.graph.call_function(aten.sum.default, (graph.graph.call_function(aten.abs.default, (factor,)),))
                for factor in product.args
            ]
            bound = graph.graph.call_function(aten.mul.Tensor, tuple(sums))
        node.replace_all_uses_with(bound)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
