"""Training: the loop, what it records, and what may happen beside it."""

from .callbacks import Callback
from .checkpoint import Checkpoint, read_checkpoint
from .early_stopping import EarlyStopping
from .fit import fit
from .history import History
from .learning_rate import LearningRate
from .loggers import CSVLog, SamplePictures, TensorBoard
from .run import Run
from .schedules import Schedule, cyclical, linear_warmup, one_cycle

__all__ = [
    "CSVLog",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "History",
    "LearningRate",
    "Run",
    "SamplePictures",
    "Schedule",
    "TensorBoard",
    "cyclical",
    "fit",
    "linear_warmup",
    "one_cycle",
    "read_checkpoint",
]
