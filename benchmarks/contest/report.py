"""What a run says: JSON, Markdown tables and a plot, from the seconds of every turn."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

PACKAGES = ("pyro_vae", "torch", "pyro-ppl", "numpyro", "jax", "pythae", "torchvision", "numpy")


def machine(threads: int, device: str) -> dict[str, Any]:
    """The machine and the versions that the figures belong to."""
    described = {"processor": _processor(), "cores": os.cpu_count(), "threads": threads, "device": device}
    if device.startswith("cuda"):
        import torch

        described["device"] = torch.cuda.get_device_name(device)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**described, "python": platform.python_version(), "versions": versions}


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def spread(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return lower, median(values), upper


def ratio(times: list[float], against: list[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios turn by turn, each with the other's turn of the same repeat."""
    return spread([mine / theirs for mine, theirs in zip(times, against, strict=True)])


def markdown(results: dict[str, Any]) -> str:
    """The tables: time with quartiles and ratio to the baseline, ratios of CompiledSVI, agreement, who is missing."""
    here = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    on = here["processor"] if here["device"] == "cpu" else here["device"]
    lines = [
        f"{on}, {here['threads']} thread{'s' if here['threads'] > 1 else ''}, Python {here['python']}; {versions}.",
        f"{results['unit'].capitalize()}: median (quartiles) of {results['repeats']} interleaved turns; "
        f"x: median of the paired ratios to {results['labels'][results['baseline']]}.",
        "",
    ]
    for name in dict.fromkeys(cell["row"] for cell in results["cells"]):
        cells = [cell for cell in results["cells"] if cell["row"] == name]
        lines += [f"**{name}**", "", _times(results, cells), ""]
        for ours in ("compiled_svi", "compiled_svi_bf16", "pyro_vae", "pyro_vae_bf16"):
            if any(ours in cell["times"] for cell in cells):
                lines += [_ratios(results, cells, ours), ""]
    if any(cell["agreement"] for cell in results["cells"]):
        lines += ["**Agreement of the losses**", "", _agreement(results), ""]
    lines += [f"- Left out, {results['labels'][name]}: {why}" for name, why in results["left_out"].items()]
    return "\n".join(lines).rstrip() + "\n"


def _table(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def _times(results: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    rows, losses = [], results.get("losses")
    for name, label in results["labels"].items():
        if not any(name in cell["times"] for cell in cells):
            continue
        row = [label]
        for cell in cells:
            if name not in cell["times"]:
                row.append("-")
                continue
            times, base = cell["times"][name], cell["times"].get(results["baseline"])
            low, middle, high = (results["per_unit"] * t for t in spread(times))
            text = f"{middle:.3g} ({low:.3g}-{high:.3g})"
            row.append(f"{text} {ratio(times, base)[1]:.2f}x" if base else text)
        if losses:
            row.append(f"{losses[name]:.1f}")
        rows.append(row)
    columns = [cell["column"] for cell in cells]
    return _table([results["unit"], *columns, *(["loss of the last, nats"] if losses else [])], rows)


def _ratios(results: dict[str, Any], cells: list[dict[str, Any]], ours: str) -> str:
    rows = []
    for name, label in results["labels"].items():
        if name == ours or not any(name in cell["times"] and ours in cell["times"] for cell in cells):
            continue
        row = [label]
        for cell in cells:
            if name in cell["times"] and ours in cell["times"]:
                low, middle, high = ratio(cell["times"][ours], cell["times"][name])
                row.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
            else:
                row.append("-")
        rows.append(row)
    return _table([f"{results['labels'][ours]} against", *(cell["column"] for cell in cells)], rows)


def _agreement(results: dict[str, Any]) -> str:
    rows = [
        [
            f"{results['labels'][name]}, {cell['row']}, {cell['column']}",
            f"{check['loss']:.3f}",
            f"{check['reference']:.3f} +- {check['tolerance']:.3f}",
            "yes" if check["agrees"] else "**NO**",
        ]
        for cell in results["cells"]
        for name, check in cell["agreement"].items()
    ]
    return _table(["mean loss of the first steps, nats per datum", "loss", "expected", "agrees"], rows)


def plot(results: dict[str, Any], path: Path) -> None:
    """Median times with quartiles as bars of error, a panel for each architecture, to ``path``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(cell["row"] for cell in results["cells"]))
    figure = Figure(figsize=(5.5 * len(panels) + 2.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, panel in zip(axes, panels, strict=True):
        cells = [cell for cell in results["cells"] if cell["row"] == panel]
        for i, (name, label) in enumerate(results["labels"].items()):
            points = [(k, spread(cell["times"][name])) for k, cell in enumerate(cells) if name in cell["times"]]
            if not points:
                continue
            low, middle, high = ([results["per_unit"] * quartiles[q] for _, quartiles in points] for q in range(3))
            below = [m - a for m, a in zip(middle, low, strict=True)]
            above = [b - m for m, b in zip(middle, high, strict=True)]
            axis.errorbar(
                [k for k, _ in points],
                middle,
                yerr=[below, above],
                label=label,
                color=f"C{i % 10}",
                marker="osD^v<>Pdhx"[i % 11],
                linestyle="--" if name.startswith("floor") else "-",
                linewidth=2.5 if name.startswith(("compiled_svi", "pyro_vae")) else 1.2,
                capsize=2,
            )
        axis.set_yscale("log")
        axis.set_xticks(range(len(cells)), [cell["column"] for cell in cells])
        axis.set_title(panel)
        axis.grid(axis="y", which="both", alpha=0.25)
    axes[0].set_ylabel(results["unit"])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)


def write(results: dict[str, Any], output_dir: Path, stem: str) -> str:
    """Writes ``stem.json``, ``stem.md`` and ``stem.png`` into the folder and returns the Markdown."""
    output_dir.mkdir(parents=True, exist_ok=True)
    text = markdown(results)
    (output_dir / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (output_dir / f"{stem}.md").write_text(text)
    plot(results, output_dir / f"{stem}.png")
    return text
