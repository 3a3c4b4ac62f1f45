"""Time of `bounds` on a VAE, side by side: pyro_vae, PyTorch by hand, and the floor, its matrix products alone.

    python benchmarks/evaluate_time.py --output-dir DIR

One process, turns interleaved, one architecture, random weights and images. Preparing (measuring, capturing, compiling)
is done once before and is told apart; a turn evaluates all images. The floor is the fastest of the products with MKL
and with oneDNN, in chunks that fill 256 MB and in small ones that stay in the processor's cache. Writes
evaluate_time.json; ratios are medians over the turns, each with the floor's turn beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from contest import report
from torch import Tensor, nn

import pyro_vae as pv

BOUNDS = importlib.import_module("pyro_vae.evaluate.bounds")  # the package's `bounds` is the function


def ours(vae: pv.VAE, x: Tensor, num_particles: int, **options: Any) -> Callable[[], Any]:
    """`bounds` after its preparation, compiled however small the evaluation is."""
    kept: list[Any] = []
    run, to_capture, to_compile = BOUNDS._run, BOUNDS._BYTES_TO_CAPTURE, BOUNDS._BYTES_TO_COMPILE
    BOUNDS._BYTES_TO_CAPTURE = BOUNDS._BYTES_TO_COMPILE = 0
    BOUNDS._run = lambda *prepared: kept.append(prepared)
    try:
        pv.bounds(vae.model, vae.guide, x, num_particles=num_particles, **options)
    finally:
        BOUNDS._run, BOUNDS._BYTES_TO_CAPTURE, BOUNDS._BYTES_TO_COMPILE = run, to_capture, to_compile
    _, passes, _ = kept[0]
    print(f"  {passes.data} data x {passes.particles} particles a pass", file=sys.stderr)

    def evaluate() -> None:
        with torch.no_grad():
            run(*kept[0])

    return evaluate


def by_hand(vae: pv.VAE, x: Tensor, num_particles: int) -> Callable[[], Any]:
    """The same bounds in eager PyTorch, chunks of 16 images."""
    encoder, decoder = vae.posterior.network.layers, vae.likelihood.network.layers

    @torch.no_grad()
    def evaluate() -> None:
        for rows in x.split(16):
            loc, log_variance = encoder(rows).chunk(2, -1)
            q = torch.distributions.Normal(loc, 1e-4 + (log_variance / 2).exp(), validate_args=False)
            z = q.rsample((num_particles,))
            loss = nn.functional.binary_cross_entropy_with_logits(
                decoder(z), rows.expand(len(z), -1, -1), reduction="none"
            )
            log_p = torch.distributions.Normal(0.0, 1.0, validate_args=False).log_prob(z).sum(-1) - loss.sum(-1)
            log_w = log_p - q.log_prob(z).sum(-1)
            log_w.mean(0), log_w.logsumexp(0)

    return evaluate


def products(
    vae: pv.VAE, x: Tensor, num_particles: int, rows: int, dtype: torch.dtype, onednn: bool
) -> Callable[[], Any]:
    """Encoder's and decoder's matrix products, with nothing between them."""
    multiply = torch.mm
    if onednn:

        def multiply(a: Tensor, b: Tensor) -> Tensor:
            return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")

    networks = [
        [layer.weight.detach().to(dtype).t() for layer in network.layers if isinstance(layer, nn.Linear)]
        for network in (vae.posterior.network, vae.likelihood.network)
    ]
    inputs = [x[:rows].to(dtype), torch.randn(rows * num_particles, networks[1][0].shape[0]).to(dtype)]

    @torch.no_grad()
    def evaluate() -> None:
        for _ in range(len(x) // rows):
            for value, network in zip(inputs, networks, strict=True):
                for weight in network:
                    value = multiply(value, weight)

    return evaluate


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="a multiple of 100")
    parser.add_argument("--particles", type=int, default=200, help="K, draws for each image")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved turns of each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--max-bytes", type=int, nargs="+", default=[2**28], help="of tensors that a pass creates; one contestant each"
    )
    parser.add_argument("--contestants", nargs="+", help="those whose name begins so; by default all")
    parser.add_argument("--output-dir", type=Path, required=True, help="where evaluate_time.json goes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints, writes, and returns what it wrote."""
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.StandardNormalPrior(40),
        pv.BernoulliLikelihood(pv.MLP(40, 784, hidden_dims=(500, 500))),
        pv.DiagonalNormalPosterior(pv.MLP(784, 80, hidden_dims=(500, 500))),
    ).eval()
    x = (torch.rand(options.images, 784) < 0.2).float()
    k = options.particles
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # without it, a bfloat16 product takes 20 times as long

    made: dict[str, Callable[[], Callable[[], Any]]] = {}
    for rows in (5, 25):
        made[f"products, MKL, {rows} data"] = lambda rows=rows: products(vae, x, k, rows, torch.float32, False)
        made[f"products, oneDNN, {rows} data"] = lambda rows=rows: products(vae, x, k, rows, torch.float32, True)
        if bf16:
            made[f"bf16 products, {rows} data"] = lambda rows=rows: products(vae, x, k, rows, torch.bfloat16, False)
    made["by hand"] = lambda: by_hand(vae, x, k)
    made["pyro_vae, by Pyro"] = lambda: ours(vae, x, k, compile=False)
    made["pyro_vae, graph"] = lambda: ours(vae, x, k, compile="graph")
    for size in options.max_bytes:
        for precision in ("float32", "bf16") if bf16 else ("float32",):
            made[f"pyro_vae, compiled, {precision}, {size / 2**20:.0f} MB"] = lambda size=size, precision=precision: (
                ours(vae, x, k, max_bytes=size, precision=precision)
            )
    if options.contestants:
        made = {name: make for name, make in made.items() if name.startswith(tuple(options.contestants))}

    run, prepared = {}, {}
    for name, make in made.items():
        print(name, file=sys.stderr)
        begin = time.perf_counter()
        run[name] = make()
        prepared[name] = time.perf_counter() - begin
        run[name]()  # untimed
    wall: dict[str, list[float]] = {name: [] for name in run}
    cpu: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(options.repeats):
        for name, evaluate in run.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            evaluate()
            cpu[name].append(time.process_time() - begin_cpu)
            wall[name].append(time.perf_counter() - begin)

    floor = {
        clock: min((n for n in times if n.startswith("products")), key=lambda n, t=times: median(t[n]))
        for clock, times in (("wall", wall), ("cpu", cpu))
    }
    rows = {
        name: {
            "prepared_s": prepared[name],
            "wall_s": wall[name],
            "cpu_s": cpu[name],
            "median_wall_s": median(wall[name]),
            "median_cpu_s": median(cpu[name]),
            "wall_to_products": report.ratio(wall[name], wall[floor["wall"]])[1],
            "cpu_to_products": report.ratio(cpu[name], cpu[floor["cpu"]])[1],
        }
        for name in run
    }
    print(f"{'':38s} wall s  CPU s   to the products: wall  CPU   prepared s")
    for name, row in rows.items():
        print(
            f"{name:38s} {row['median_wall_s']:6.2f} {row['median_cpu_s']:6.2f} {row['wall_to_products']:21.2f} "
            f"{row['cpu_to_products']:5.2f} {row['prepared_s']:10.1f}"
        )
    results = {
        "machine": report.machine(options.threads, "cpu"),
        "images": options.images,
        "num_particles": k,
        "architecture": "784-500-500-40",
        "repeats": options.repeats,
        "bf16_instructions": bf16,
        "floor": floor,
        "contestants": rows,
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "evaluate_time.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
