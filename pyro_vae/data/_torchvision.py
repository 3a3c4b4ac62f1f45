"""The import of torchvision, in a way that also works with a CPU-only torch.

The torchvision wheel of the package index is built for CUDA torch. With a CPU-only torch its compiled library does not
load, and ``import torchvision`` raises ``operator torchvision::nms does not exist``, although its data sets need no
compiled operator. After that error alone the named operators are declared, without an implementation, and the import is
tried again. Where the normal import works nothing is declared.
"""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

import torch

# torchvision registers shape rules for these two operators while it is imported, so that they must exist before.
_SCHEMAS = {name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")}
_declarations: list[torch.library.Library] = []  # an operator stays declared as long as its Library exists


def import_torchvision() -> ModuleType:
    """Import torchvision, also with a torch that its compiled operators were not built for.

    With such a torch ``torchvision.datasets``, ``.transforms`` and ``.utils`` work; its compiled operators (``nms``
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
                del sys.modules[name]  # modules left by the failed import would break the next one
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or missing[1] not in undeclared:
                found = f"with torch {torch.__version__}: {error}"
                raise ImportError(
                    f"torchvision: cannot be imported {found}. Install versions that belong together."
                ) from error
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(undeclared.pop(missing[1]))
            _declarations.append(library)
