"""Parameters and modules that first appear after the first batch, and values beside them in Pyro's parameter store."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from .parameters import Look, look_at, set_module, set_tensors
from .resume.optimizer_state import prepare
from .run import Run

__all__ = ["LateParts"]

# Where Pyro keeps decaying averages of a non-reparameterized site's cost (``use_decaying_avg_baseline``).
_BASELINE = "__baseline_avg_downstream_cost_"


class LateParts:
    """Takes in what model and guide make or use for the first time in a later step, or after a resume.

    Args:
        run: its parameters and modules grow.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._before = set(pyro.get_param_store().keys())
        self._known = len(self._before)
        # What a checkpoint holds of them, until they appear.
        self._modules: list[tuple[list[str], dict[str, Any]]] = []
        self._parameters: dict[str, Tensor] = {}

    def take_in(self, look: Look) -> None:
        """Add what is new in a look at model and guide to the run; give it the values that a checkpoint holds."""
        run = self._run
        inside = {part for module in run.modules for part in module.modules()}
        modules = [module for module in look.modules if module not in inside]
        parameters = {name: value for name, value in look.parameters.items() if name not in run.parameters}
        run.modules += modules
        run.parameters |= parameters
        prepare(run.svi.optim, run.parameters)
        for module in modules:
            names = run.names_of(module)
            found = next((item for item in self._modules if item[0] == names), None)
            if found is not None:
                self._modules.remove(found)
                set_module(module, found[1])
        set_tensors({name: value for name, value in self._parameters.items() if name in parameters}, parameters)
        self._parameters = {name: value for name, value in self._parameters.items() if name not in parameters}
        self._known = len(pyro.get_param_store())

    def before_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look for what a checkpoint holds and has not appeared yet, so that the step begins with its values."""
        if self._modules or self._parameters:
            self.take_in(look_at(self._run.svi, args, kwargs))

    def after_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the step's batch again where the step has added to the parameter store."""
        if len(pyro.get_param_store()) != self._known:
            self.take_in(look_at(self._run.svi, args, kwargs))

    def state_dict(self) -> dict[str, Any]:
        """Return what is still awaited, and the values in the store that are no parameters of model and guide."""
        store = pyro.get_param_store()
        beside = {
            name: value.detach()
            for name, value in store.named_parameters()
            if name not in self._run.parameters and (name not in self._before or name.startswith(_BASELINE))
        }
        # Without a constraint, which could not be saved.
        beside = {name: value for name, value in beside.items() if torch.equal(store[name].detach(), value)}
        return {
            "modules": [[names, module] for names, module in self._modules],
            "parameters": self._parameters,
            "store": beside,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self._modules = [(names, module) for names, module in state["modules"]]
        self._parameters = dict(state["parameters"])
        store = pyro.get_param_store()
        for name, value in state["store"].items():
            store[name] = value.clone()
        self._known = len(store)

    def wait_for(self, modules: list[tuple[list[str], dict[str, Any]]], parameters: dict[str, Tensor]) -> None:
        """Keep what a checkpoint holds of modules and parameters that have not appeared yet."""
        self._modules += modules
        self._parameters |= parameters
