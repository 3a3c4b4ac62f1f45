"""Networks: modules that map tensors to tensors, with any number of leading dimensions."""

from __future__ import annotations

from .convolutional import ConvDecoder, ConvEncoder
from .leading_dims import AnyLeadingDims
from .mlp import MLP, GatedMLP
from .sequence import BackwardRNN

__all__ = ["MLP", "AnyLeadingDims", "BackwardRNN", "ConvDecoder", "ConvEncoder", "GatedMLP"]
