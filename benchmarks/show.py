"""`python -m benchmarks show RUN.json`: a saved run's table and picture, without measuring."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import gpu_table, report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the JSON file of a run")
    parser.add_argument("--picture", type=Path, metavar="PATH", help="draw it again (matplotlib)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def run(arguments: argparse.Namespace) -> int:
    document = json.loads(arguments.run.read_text())
    drawn = gpu_table if document.get("device", "cpu") == "cuda" else report
    print(drawn.table(document, arguments.markdown))
    if arguments.picture:
        drawn.picture(document, arguments.picture)
    return 0
