"""Runs some of Pyro's tests under the recorder, in a process of its own."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest
import torch

from .recorder import Recorder


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=Path)
    parser.add_argument("tests", type=Path, help="file with one test a line")
    parser.add_argument("results", type=Path)
    parser.add_argument("--captured", action="store_true")
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--most-calls", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recorder = Recorder(args.captured, args.results.resolve(), args.seconds, args.most_calls)
    tests = args.tests.read_text().splitlines()
    os.chdir(args.checkout)
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:timeout"]
    return int(pytest.main([*options, *tests], plugins=[recorder]))


if __name__ == "__main__":
    sys.exit(main())
