"""Pyro's own tests with ``SVI`` replaced by ``CompiledSVI``, each run once by Pyro and once through a capture.

    python benchmarks/pyro_tests.py PATH_TO_PYRO_CHECKOUT --output-dir DIR --sample 230

Takes the tests of those files of a source checkout of Pyro that mention ``SVI`` or ``loss_and_grads``, in random order,
until ``--sample`` of them have made a step, an evaluation or a direct call of ``loss_and_grads``. Each runs twice from
one seed: by Pyro, and with ``CompiledSVI(..., compile="graph")`` and direct calls that are captured and replayed. Every
loss, gradient and parameter is compared. A test that has made ``--most-calls`` calls ends there, in both runs. Writes
``pyro_tests.json``: each test with its verdict and message; and prints the table. Exits with 1 where a test is
different, refused or crashed. What ``--output-dir`` already holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pyro_suite.verdict import ASIDE, COUNTED, DIFFERENT, KEPT, verdict

HERE = Path(__file__).resolve().parent
MENTIONS = re.compile(r"\bSVI\(|loss_and_grads")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder that holds Pyro's tests/")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--sample", type=int, default=None, help="how many tests (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which tests are taken")
    parser.add_argument("-k", dest="matching", default="", help="only tests whose name contains this")
    parser.add_argument("--seconds", type=int, default=120, help="the most processor time that a test may take")
    parser.add_argument("--most-calls", type=int, default=60, help="calls after which a test ends")
    args = parser.parse_args(arguments)
    args.output_dir.mkdir(parents=True, exist_ok=True)

    def run(tests: list[str], kind: str) -> dict[str, Any]:
        return _run(args, tests, kind)

    usable: list[str] = []
    tests = [test for test in _collect(args.checkout) if args.matching in test]
    random.Random(args.seed).shuffle(tests)
    wanted = len(tests) if args.sample is None else args.sample
    while tests and len(usable) < wanted:
        some, tests = tests[:40], tests[40:]
        plain = run(some, "plain")
        usable += [test for test in some if test in plain and _counts(plain[test])]
    usable = usable[:wanted]
    plain = run(usable, "plain")
    running = [test for test in usable if plain[test]["outcome"] in ("passed", "enough", "skipped")]
    captured = run(running, "captured")
    verdicts = {test: verdict(plain[test], captured.get(test, plain[test])) for test in usable}
    doubtful = [test for test, (name, _) in verdicts.items() if name == DIFFERENT]
    again = run(doubtful, "again")
    verdicts |= {test: verdict(plain[test], captured[test], again[test]) for test in doubtful}
    _write(args.output_dir / "pyro_tests.json", verdicts, captured)
    counts = Counter(name for name, _ in verdicts.values())
    _print(verdicts, counts, captured)
    return int(any(counts[name] for name in COUNTED if name not in KEPT))


def _counts(result: dict[str, Any]) -> bool:
    """Whether a test has made a call that can be captured."""
    return bool(result["numbers"]) and result["outcome"] in ("passed", "enough", "failed")


def _collect(checkout: Path) -> list[str]:
    """Every test of the files that mention SVI."""
    files = [p for p in sorted((checkout / "tests").rglob("test_*.py")) if MENTIONS.search(p.read_text())]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--no-header", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(str(p.relative_to(checkout)) for p in files)], cwd=checkout, capture_output=True, text=True
    )
    tests = [line for line in done.stdout.splitlines() if "::" in line and not line.startswith(("ERROR", "FAILED"))]
    if not tests:
        raise SystemExit(f"{checkout}: pytest collects no tests there.\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return tests


def _run(args: argparse.Namespace, tests: list[str], kind: str) -> dict[str, Any]:
    """Run tests in worker processes, a new one after each that dies, and return their results."""
    results = args.output_dir / f"{kind}.jsonl"
    while True:
        done, started = _read(results)
        left = [test for test in tests if test not in done]
        if not left:
            return {test: done[test] for test in tests}
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(left))
            file.flush()
            command = [sys.executable, "-m", "pyro_suite.worker", str(args.checkout.resolve()), file.name]
            command += [str(results.resolve())]
            command += ["--seconds", str(args.seconds), "--most-calls", str(args.most_calls)]
            command += ["--captured"] if kind == "captured" else []
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            with subprocess.Popen(command, cwd=HERE, **pipes) as worker:  # type: ignore[call-overload]
                said = _wait(worker, results, 5 * args.seconds + 300)
        done, started = _read(results)
        missing = [test for test in left if test not in done]
        culprit = next((test for test in reversed(started) if test in missing), None)
        for test in [culprit] if culprit else missing:
            message = f"the process ended with {worker.returncode}: {said[-400:]}" if culprit else "was not run"
            line = {
                "test": test,
                "event": "end",
                "outcome": "died",
                "message": message,
                "numbers": [],
                "parameters": [],
            }
            with results.open("a") as output:
                output.write(json.dumps({**line, "refusals": [], "said": [], "captures": 0, "seconds": 0}) + "\n")


def _wait(worker: subprocess.Popen[str], results: Path, seconds: float) -> str:
    """Wait for a worker, and end it where it has written nothing for so long."""
    while True:
        try:
            return worker.communicate(timeout=5)[0]
        except subprocess.TimeoutExpired:
            if time.time() - (results.stat().st_mtime if results.exists() else time.time()) > seconds:
                worker.kill()


def _read(results: Path) -> tuple[dict[str, Any], list[str]]:
    """Finished tests with their results, and those that were started, in order."""
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    return {x["test"]: x for x in lines if x["event"] == "end"}, [x["test"] for x in lines if x["event"] == "start"]


def _write(path: Path, verdicts: dict[str, tuple[str, str]], captured: dict[str, Any]) -> None:
    rows = [
        {"test": test, "verdict": name, "message": words, "captures": captured.get(test, {}).get("captures", 0)}
        for test, (name, words) in sorted(verdicts.items())
    ]
    path.write_text(json.dumps(rows, indent=1) + "\n")


def _print(verdicts: dict[str, tuple[str, str]], counts: Counter[str], captured: dict[str, Any]) -> None:
    for name in (*COUNTED[2:], *ASIDE):
        for test, (verdict_, words) in sorted(verdicts.items()):
            if verdict_ == name:
                print(f"{name}: {test}\n    {words[:500]}")
    total = sum(counts[name] for name in COUNTED)
    kept = sum(counts[name] for name in KEPT)
    short = sum(name in KEPT[:2] and not captured[test]["captures"] for test, (name, _) in verdicts.items())
    print("\n| outcome | tests |\n|---|---|")
    for name in (*COUNTED, *ASIDE):
        print(f"| {name} | {counts[name]} |")
    print(f"\n{kept} of {total} equal or left to Pyro ({100 * kept / max(total, 1):.1f} %);", end=" ")
    print(f"{short} of the equal ones make no two calls alike, so that nothing is captured.")


if __name__ == "__main__":
    sys.exit(main())
