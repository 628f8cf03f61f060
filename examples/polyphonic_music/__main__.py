"""The command ``python -m polyphonic_music``: search, train and report the ladder on piano rolls."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import polyphonic_music as package
from polyphonic_music.baselines import keys_alone, repeat_accuracy
from polyphonic_music.files import UnusableError, printable
from polyphonic_music.midi import write_midi
from polyphonic_music.model import Predictor
from polyphonic_music.pictures import two_rolls
from polyphonic_music.plans import PLANS, StudyPlan
from polyphonic_music.progress import Progress
from polyphonic_music.report import cores, environment, write_report
from polyphonic_music.rolls import Rolls, key_frequency
from polyphonic_music.sampling import sample_piece
from polyphonic_music.study import CHORALES, Run, Rung, Study, plain_name
from polyphonic_music.table import table
from polyphonic_music.worker import load_weights

ENDINGS = (".mat", ".pickle", ".pkl", ".json")
SAMPLED_STEPS = 96


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options; a wrong one ends the command with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m polyphonic_music", description=package.__doc__)
    kinds = ", ".join(ENDINGS)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help=f"a file of rolls ({kinds}) or a folder of them; default: the Bach chorales of music21",
    )
    parser.add_argument("--plan", choices=PLANS, default="quick", help="default: quick")
    parser.add_argument("--out", type=Path, default=Path("experiments"), help="folder, default: experiments")
    parser.add_argument("--workers", type=int, default=cores(), help="processes of one thread each")
    parser.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="write TensorBoard curves")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    if options.tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
        parser.error("--tensorboard needs the package tensorboard (pip install tensorboard)")
    return options


def sources(data: Path | None) -> list[str]:
    """The given file, the files of the given folder, or the chorales."""
    if data is None:
        return [CHORALES]
    if not data.is_dir():
        return [str(data)]
    found = sorted(str(path) for path in data.iterdir() if path.suffix.lower() in ENDINGS)
    if not found:
        raise UnusableError(f"{data}: no file of rolls ({', '.join(ENDINGS)}) in this folder")
    return found


def results_of(study: Study, plan: StudyPlan, options: argparse.Namespace) -> dict[str, Any]:
    """The content of the results file, which docs/experiments.md describes."""
    runs = {rung.job(run): result for rung in study.rungs for run, result in rung.results.items()}
    where = "" if options.data is None else f" --data {'DIR' if options.data.is_dir() else 'FILE'}"
    return {
        "format": 1,
        "command": f"python -m polyphonic_music --plan {plan.name}{where}",
        "environment": environment(options.workers),
        "plan": asdict(plan),
        "seconds": sum(result["seconds"] for result in runs.values()),
        "data": {
            plain_name(data): {
                "note": data.note,
                "baselines": {"keys_alone": keys_alone(data), "repeat_accuracy": repeat_accuracy(data)},
            }
            for data in study.data.values()
        },
        "results": [rung.entry() for rung in study.rungs],
    }


def write_samples(study: Study, folder: Path) -> Iterator[str]:
    """For each data set, write a sample of the network with the best validation, and yield lines about it."""
    for source, data in study.data.items():
        rungs = [rung for rung in study.rungs if rung.source == source]
        finished = [(rung, run) for rung in rungs for run in rung.chosen() if run in rung.results]
        finished = [(rung, run) for rung, run in finished if rung.results[run]["valid"] is not None]
        if not finished:
            continue
        rung, run = max(finished, key=lambda pair: float(pair[0].results[pair[1]]["valid"]))
        try:
            model = load_model(study, rung, run, data)
        except UnusableError as error:
            yield f"no sampled piece for {data.name}: {error}"
            continue
        real = max(data.test, key=lambda roll: min(len(roll), SAMPLED_STEPS))
        piece = sample_piece(model, real[:1], SAMPLED_STEPS, torch.Generator().manual_seed(0))
        name = f"sampled-{plain_name(data)}"
        write_midi(piece, folder / f"{name}.mid")
        yield f"sampled piece of {rung.part.model} {rung.technique}: {folder / name}.mid"
        yield two_rolls(piece, real, folder / f"{name}.png", name=data.name)


def load_model(study: Study, rung: Rung, run: Run, data: Rolls) -> Predictor:
    """The network of a full run, with its best weights."""
    job = rung.job(run)
    model = Predictor(job.model, job.settings, key_frequency(data.train))
    load_weights(model, job, study.folder)
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """Start or continue a study, and write its report, even if the study does not finish."""
    options = parse(arguments)
    plan = PLANS[options.plan]
    try:
        study = Study(plan, sources(options.data), options.out / "runs")
    except (UnusableError, OSError) as error:
        return failed(error, 2)
    try:
        run_and_report(study, plan, options)
    except OSError as error:  # for example a full disk
        return failed(error, 1)
    except BrokenProcessPool:
        return failed("a process was ended, perhaps because memory ran out; the same command continues", 1)
    return 0


def failed(why: object, status: int) -> int:
    """Print one line and return the exit status."""
    print(f"python -m polyphonic_music: {printable(str(why))}", file=sys.stderr)
    return status


def run_and_report(study: Study, plan: StudyPlan, options: argparse.Namespace) -> None:
    """Run the study, then write the report, also after an error or Ctrl-C."""
    try:
        with Progress() as progress:
            study.run(options.workers, progress.show, options.tensorboard)
    finally:
        results = results_of(study, plan, options)
        lines = [*write_report(results, options.out), *write_samples(study, options.out)]
        print(table(results), *map(printable, [*lines, f"results: {options.out}"]), sep="\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
