"""Whole epochs on MNIST, input pipeline included: Pyro's example recipe, its peers, and pyro_vae, one file each.

All train a 784-400-50 VAE with softplus units in batches of 256 by Adam(1e-3). Pyro's and pythae's train on grey
levels; NumPyro's and pyro_vae's binarize every image anew in every epoch.
"""
