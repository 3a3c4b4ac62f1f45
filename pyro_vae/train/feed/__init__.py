"""Batches, from whatever holds them, until the run is asked to stop."""
