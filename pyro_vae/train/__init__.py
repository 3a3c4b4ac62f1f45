"""Training: the loop, what it records, and what may happen beside it."""

from .callbacks import Callback, Checkpoint, CSVLog, EarlyStopping, LearningRate, SamplePictures, TensorBoard
from .fit import fit
from .history import History
from .resume.checkpoint_file import read_checkpoint
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
