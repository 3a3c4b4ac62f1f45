"""The version of pyro_vae, in one place."""

__version__ = "0.1.0"
