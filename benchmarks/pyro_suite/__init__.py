"""Pyro's own tests, with ``SVI`` and direct calls of ``loss_and_grads`` going through a capture."""
