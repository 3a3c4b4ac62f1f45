"""The tests of pyro_vae; ``tests.helpers`` holds the code that several of them share."""
