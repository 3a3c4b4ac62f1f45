"""What training in several processes costs: the parts of a joint step, in milliseconds, medians.

    python benchmarks/scaling.py                             # one process, all cores
    torchrun --nproc-per-node 2 benchmarks/scaling.py        # two, each with half of every batch

Prints one line of JSON: the bytes that are reduced each step, and the time of a whole step, of a process's own
gradients alone, of the all-reduce alone and, in one process, of ``svi.step`` (whose Adam is in the compiled graph).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import pyro
import torch
import torch.distributed as dist
from pyro.infer import SVI, Trace_ELBO

import pyro_vae as pv
from pyro_vae.infer import distributed


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Measure, and return what is printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=200, help="of all processes together")
    parser.add_argument("--hidden-dims", type=int, nargs="+", default=[500, 500])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--compile", action="store_true", help="CompiledSVI in place of pyro.infer.SVI")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    images = (torch.rand(args.batch_size, 784) < 0.2).float()
    x = next(iter(pv.data.Batches(images, batch_size=len(images)).shard(distributed.rank(), distributed.world_size())))
    x = x.to(device)
    vae = pv.VAE(
        pv.StandardNormalPrior(40),
        pv.BernoulliLikelihood(pv.MLP(40, 784, hidden_dims=args.hidden_dims[::-1])),
        pv.DiagonalNormalPosterior(pv.MLP(784, 80, hidden_dims=args.hidden_dims)),
    ).to(device)
    kind = pv.CompiledSVI if args.compile else SVI
    svi = kind(vae.model, vae.guide, pv.Adam({"lr": 1e-3}), Trace_ELBO())
    svi.evaluate_loss(x)  # now every parameter exists
    parameters = dict(pyro.get_param_store().named_parameters())
    distributed.same_start(parameters)
    step = distributed.JointStep(svi, parameters)
    buffer = torch.zeros(step.bytes // 4, device=device)

    def own_gradients() -> None:
        if args.compile:
            svi.backward(x)
        else:
            svi.loss_and_grads(svi.model, svi.guide, x)
        for parameter in parameters.values():
            parameter.grad = None

    parts: dict[str, Callable[[], object]] = {
        "step": lambda: step(x),
        "own_gradients": own_gradients,
        "all_reduce": lambda: dist.all_reduce(buffer) if distributed.world_size() > 1 else None,
    }
    if distributed.world_size() == 1:
        parts["svi_step"] = lambda: svi.step(x)
    times: dict[str, list[float]] = {name: [] for name in parts}
    for position in range(args.steps + 10):
        for name, part in parts.items():
            begin = time.perf_counter()
            part()
            if device == "cuda":
                torch.cuda.synchronize()
            if position >= 10:  # compiled by then
                times[name].append(1000 * (time.perf_counter() - begin))
    milliseconds = {name: round(statistics.median(each), 3) for name, each in times.items()}
    result: dict[str, object] = {
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "device": device,
        "compiled": args.compile,
        "batch_size": args.batch_size,
        "parameters": sum(p.numel() for p in parameters.values()),
        "bytes": step.bytes,
        "milliseconds": milliseconds,
        "data_per_second": round(1000 * args.batch_size / milliseconds["step"]),
    }
    if distributed.rank() == 0:
        print(json.dumps(result))
    return result


if __name__ == "__main__":
    with distributed.processes():
        main()
