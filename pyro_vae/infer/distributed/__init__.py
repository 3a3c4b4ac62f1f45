r"""Many processes that train one model together, on ``torch.distributed``.

Every process has all parameters and a share of the data. A step's loss is a sum over the batch's data, so the shares'
gradients add up to the gradient of the whole batch:

.. math:: \nabla L(x_1, \dots, x_B) = \sum_{r=1}^{W} \nabla L(\text{share of process } r)

and a step of :math:`W` processes with :math:`B / W` data each is a step of one process with :math:`B`. In one process
each function here does nothing, so that the same program runs by ``python`` and by ``torchrun``.
"""

from __future__ import annotations

from .exchange import first_alone, from_first, same_start, spread
from .processes import processes, rank, world_size
from .step import JointStep

__all__ = [
    "JointStep",
    "first_alone",
    "from_first",
    "processes",
    "rank",
    "same_start",
    "spread",
    "world_size",
]
