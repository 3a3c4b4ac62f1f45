"""The state of a run as tensors and plain values, and files that hold it."""
