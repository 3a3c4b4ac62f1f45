"""The one place where torchvision is imported, so that it also loads beside a CPU-only torch.

The torchvision wheel of the package index is built for CUDA torch. Beside a CPU-only torch its compiled library does
not load, and ``import torchvision`` stops at ``operator torchvision::nms does not exist``, although its data sets need
no compiled operator. Only on that very failure are the named operators declared, without an implementation, and the
import tried again. Where the normal import works nothing is declared.
"""

import importlib
import re
import sys
from types import ModuleType

import torch

# torchvision attaches shape rules to these two while it is imported; each has to exist by then.
_SCHEMAS = {name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")}
_declarations: list[torch.library.Library] = []  # a declaration lives only as long as its Library


def import_torchvision() -> ModuleType:
    """Import torchvision, also beside a torch that its compiled operators were not built for.

    Beside such a torch ``torchvision.datasets``, ``.transforms`` and ``.utils`` work; its compiled operators (``nms``
    and so on) raise torchvision's own error when they are called.

    Returns:
        The module ``torchvision``. From then on a plain ``import torchvision`` works in this process too.

    Raises:
        ImportError: If torchvision is not installed, or if its import fails for any other reason.

    Example:
        >>> from pyro_vae.data import import_torchvision
        >>> import_torchvision().datasets.MNIST.__name__
        'MNIST'
    """
    undeclared = dict(_SCHEMAS)
    while True:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]  # half-imported, they would poison the next import
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or missing[1] not in undeclared:
                found = f"beside torch {torch.__version__}: {error}"
                raise ImportError(
                    f"torchvision: cannot be imported {found}. Install the two for each other."
                ) from error
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(undeclared.pop(missing[1]))
            _declarations.append(library)
