"""``python -m rnnkernels.experiments``: the technique ladder on piano rolls, searched, trained and told."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rnnkernels.experiments.plans import PLANS
from rnnkernels.experiments.progress import Progress
from rnnkernels.experiments.rolls import RollsError
from rnnkernels.experiments.study import Study
from rnnkernels.experiments.worker import CHORALES


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; a sentence about a wrong one, and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m rnnkernels.experiments", description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=None,
        metavar="PATH",
        help="a file of rolls (.mat, .pickle, .json), or a folder of them; default: music21's Bach chorales",
    )
    parser.add_argument("--plan", choices=PLANS, default="quick", help="default: quick")
    parser.add_argument("--out", type=Path, default=Path("experiments"), help="folder of what is made")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes, each of one thread"
    )
    parser.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="write the curves there, too")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    return options


def sources(data: Path | None) -> list[str]:
    """The files of a folder, the file, or the chorales."""
    if data is None:
        return [CHORALES]
    if not data.is_dir():
        return [str(data)]
    found = sorted(
        str(path) for path in data.iterdir() if path.suffix in (".mat", ".pickle", ".pkl", ".json")
    )
    if not found:
        raise RollsError(f"{data}: no .mat, .pickle, .pkl or .json file in this folder")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or go on with a study, and write its report."""
    options = parse(arguments)
    plan = PLANS[options.plan]
    try:
        study = Study(plan, sources(options.data), options.out / "runs", options.workers, options.tensorboard)
    except RollsError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    progress = Progress()
    study.run(progress.show)
    progress.end()
    print(asdict(plan)["name"])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
