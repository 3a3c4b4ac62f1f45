"""Programs of other people's kind, each run by Pyro's SVI and by CompiledSVI."""
