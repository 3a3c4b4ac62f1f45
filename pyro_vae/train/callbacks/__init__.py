"""What may happen beside training."""

from .base import Callback
from .checkpoint import Checkpoint
from .early_stopping import EarlyStopping
from .learning_rate import LearningRate
from .loggers import CSVLog, TensorBoard
from .pictures import SamplePictures

__all__ = ["CSVLog", "Callback", "Checkpoint", "EarlyStopping", "LearningRate", "SamplePictures", "TensorBoard"]
