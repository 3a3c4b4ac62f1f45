"""The parts of the side-by-side benchmarks: the problem, the contestants, their processes, and what is said of them."""
