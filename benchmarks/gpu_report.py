"""`python -m benchmarks gpu-report`: what a machine with an NVIDIA GPU says of this checkout, in one command.

Builds for the card that is there, runs the GPU tests, the small ones again under compute-sanitizer, then the
benchmarks. Everything is written to one folder; the short table is printed last. It needs no network and
installs nothing: the extension is built in place, with the torch and the Python that run this. Status 0 means
that all stages passed; what could not be run has not passed, but for the picture.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from . import gpu_table, nade, optimizer, report
from .card import arch_list, card_line, find_tool, no_card
from .machine import environment
from .stages import Command, Outcome, Stage, last_line, run_stages

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 465.0  # the whole report, under eight minutes
# The small ones of these are marked sanitize.
GPU_TESTS = [
    str(ROOT / "tests" / "cuda" / name)
    for name in ("test_cuda.py", "test_cuda_optimizer.py", "test_cuda_nade.py")
]
START_UP = 20.0  # of a benchmark's time for imports, and for writing what it has
PYTHON = sys.executable
CHECK_BUILD = (
    "from rnnkernels import build_config; c = build_config(); print('built for', *c['cuda_architectures']); "
    "raise SystemExit(None if c['cuda'] else 'the build has no CUDA kernels')"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=ROOT / "benchmark-results", metavar="DIR")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole report")
    parser.add_argument("--only", metavar="STAGE,...", help="of those that a report prints, in its order")


def run(arguments: argparse.Namespace) -> int:
    if why := no_card():
        print(f"error: {why}", file=sys.stderr)
        return 2
    found = environment(torch.get_num_threads(), "cuda", package=False)
    folder = arguments.output / folder_name(found["card"]["name"], datetime.now())
    folder.mkdir(parents=True, exist_ok=True)
    stages = chosen(all_stages(folder), arguments.only)
    variables = build_variables(tuple(found["card"]["capability"]))
    print(f"{card_line(found['card'])}\n{folder}", flush=True)
    outcomes = run_stages(
        stages, folder, arguments.seconds, variables, show=lambda line: print(line, flush=True)
    )
    return finish(folder, found, stages, outcomes)


def folder_name(card: str, now: datetime) -> str:
    return f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}-{now:%Y%m%d-%H%M%S}"


def chosen(stages: Sequence[Stage], only: str | None) -> list[Stage]:
    if only is None:
        return list(stages)
    names = only.split(",")
    if unknown := set(names) - {stage.name for stage in stages}:
        raise SystemExit(
            f"--only: no stage {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in stages)}"
        )
    return [stage for stage in stages if stage.name in names]


def build_variables(capability: tuple[int, int]) -> dict[str, str]:
    """The environment of all stages: the package of this checkout, built for this card alone."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {
        **os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "RNNKERNELS_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": arch_list(capability),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------- stages


def all_stages(folder: Path) -> list[Stage]:
    def fixed(*commands: Command) -> Any:
        return lambda _seconds: commands

    def benchmark(name: str, *options: str) -> Command:
        return [PYTHON, "-m", "benchmarks", name, "--device", "cuda", "--output", str(folder), *options]

    run_json = folder / "recurrence.json"
    draw = [PYTHON, "-m", "benchmarks", "show", str(run_json), "--picture", str(folder / "recurrence.png")]
    build = [PYTHON, str(ROOT / "setup.py"), "build_ext", "--inplace"]
    return [
        Stage(
            "machine", fixed(["nvidia-smi"]), 30, 5, missing=no_nvidia_smi, said=driver_line, optional=True
        ),
        Stage("build", fixed(build, [PYTHON, "-c", CHECK_BUILD]), 200, 60, missing=no_build_tools),
        Stage(
            "tests", fixed(pytest_command()), 120, 30, missing=no_pytest, said=test_counts, wrong=no_test_ran
        ),
        sanitized("memcheck", {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}),
        sanitized("racecheck", {}),
        Stage("optimizer", fixed(benchmark("optimizer")), 45, 25, said=rates_line),
        Stage("nade", fixed(benchmark("nade")), 60, 30, said=rates_line),
        Stage(
            "recurrence",
            lambda seconds: [benchmark("recurrence", f"--budget={max(10.0, seconds - START_UP):.0f}")],
            400,
            60,
            said=points_line,
        ),
        Stage("picture", fixed(draw), 20, 10, missing=lambda: no_picture(run_json), optional=True),
    ]


def pytest_command(*options: str) -> Command:
    return [PYTHON, "-m", "pytest", *GPU_TESTS, "-p", "no:cacheprovider", *options]


def sanitized(tool: str, variables: dict[str, str]) -> Stage:
    """The tests of small shapes again, with only this package's kernels watched: torch's take minutes.

    memcheck has torch take each tensor's memory by itself, so that the end of a tensor is an end.
    """

    def commands(_seconds: float) -> list[Command]:
        program = find_tool("compute-sanitizer") or "compute-sanitizer"
        options = ["--tool", tool, "--error-exitcode", "99", "--kernel-name", "kernel_substring=rnnkernels"]
        return [[program, *options, *pytest_command("-m", "sanitize")]]

    def missing() -> str | None:
        if find_tool("compute-sanitizer") is None:
            return "compute-sanitizer is neither on PATH nor in the CUDA toolkit"
        return no_pytest()

    return Stage(
        tool,
        commands,
        75,
        20,
        missing=missing,
        said=sanitizer_counts,
        wrong=nothing_watched,
        variables=variables,
    )


def lacking(modules: Sequence[str], programs: Sequence[str]) -> str | None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    missing += [name for name in programs if find_tool(name) is None]
    return f"this machine lacks {', '.join(missing)}" if missing else None


def no_nvidia_smi() -> str | None:
    return lacking([], ["nvidia-smi"])


def no_build_tools() -> str | None:
    return lacking(
        ["setuptools", "pybind11"], ["cmake", "ninja", "nvcc", os.environ.get("CXX", "c++").split()[0]]
    )


def no_pytest() -> str | None:
    return lacking(["pytest", "hypothesis"], [])


def no_picture(run_json: Path) -> str | None:
    if not run_json.exists():
        return "there is no recurrence.json to draw"
    return None if report.can_draw() else "matplotlib is not installed"


# ------------------------------------------------------------------- what the logs of stages say


def test_counts(log: str) -> str:
    """pytest's last line, without its time and its rules."""
    found = re.findall(r"^=*\s*((?:\d+ [a-z]+(?:, )?)+) in [\d.]+", log, re.MULTILINE)
    return found[-1] if found else last_line(log)


def no_test_ran(log: str) -> str | None:
    """Skipped tests are no passed ones."""
    return None if re.search(r"\b[1-9]\d* passed", test_counts(log)) else f"no test ran: {test_counts(log)}"


def sanitizer_counts(log: str) -> str:
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.+)", log)
    return f"{test_counts(log)}; {found[-1] if found else 'no summary of compute-sanitizer'}"


def nothing_watched(log: str) -> str | None:
    if "SUMMARY:" not in log:
        return "compute-sanitizer printed no summary"
    return no_test_ran(log)


def driver_line(log: str) -> str:
    found = re.search(r"Driver Version: \S+", log)
    return found[0] if found else last_line(log)


def points_line(log: str) -> str:
    """How far it came, or what was wrong with rnnkernels."""
    if errors := re.findall(r"^error: (.+)", log, re.MULTILINE):
        return f"{errors[0]} (and {len(errors) - 1} more)" if len(errors) > 1 else str(errors[0])
    points = re.findall(r"^\[(\d+)/(\d+)\]", log, re.MULTILINE)
    return f"{points[-1][0]} of {points[-1][1]} points" if points else last_line(log)


def rates_line(log: str) -> str:
    found = re.findall(r"^\w+: .+ in the geometric mean.*$", log, re.MULTILINE)
    return found[-1] if found else last_line(log)


# --------------------------------------------------------------------------------------- summary


def finish(folder: Path, found: dict[str, Any], stages: Sequence[Stage], outcomes: Sequence[Outcome]) -> int:
    """The JSON, the full log, the summary; and the report's status."""
    optional = {stage.name: stage.optional for stage in stages}
    bad = [outcome.name for outcome in outcomes if not outcome.good(optional[outcome.name])]
    runs = {name: load(folder / f"{name}.json") for name in ("recurrence", "optimizer", "nade")}
    for document in runs.values():
        found |= {"rnnkernels": document["environment"]["rnnkernels"]} if document else {}
    stage_rows = [outcome._asdict() for outcome in outcomes]
    report.save_json(
        {"environment": found, "stages": stage_rows, "failed": bad, **runs}, folder / "report.json"
    )
    with (folder / "log.txt").open("w") as whole:
        for log in sorted(folder.glob("*.log")):
            whole.write(f"==== {log.stem} ====\n{log.read_text(errors='replace')}\n")
    (folder / "summary.md").write_text(summary(found, outcomes, bad, runs, markdown=True) + "\n")
    print(f"\n{summary(found, outcomes, bad, runs)}", flush=True)
    return 1 if bad else 0


def load(path: Path) -> dict[str, Any] | None:
    """A benchmark that was cut short may have left half a file, or none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return document


def summary(
    found: dict[str, Any],
    outcomes: Sequence[Outcome],
    bad: Sequence[str],
    runs: dict[str, dict[str, Any] | None],
    markdown: bool = False,
) -> str:
    """The short table: benchmarks, then stages, then the verdict."""
    draw = report.markdown_rows if markdown else report.plain
    head = [
        card_line(found["card"]),
        f"torch {found['torch']}, commit {found['git_commit']}, {found['date']}",
    ]
    lines = [*head, ""] if not markdown else ["  \n".join(head), ""]
    if document := runs["recurrence"]:
        where = f"recurrence, {len(document['cells'])} points"
        left_out = len(document["points_left_out"])
        lines += [f"{where}, {left_out} left out" if left_out else where, ""]
        lines += [*draw(gpu_table.summary_rows(document), 2), "", *gpu_table.networks_lines(document), ""]
    if document := runs["optimizer"]:
        lines += [*draw(optimizer.rows(document), 2), ""]
    if document := runs["nade"]:
        lines += [*draw(nade.rows(document), 2), ""]
    rows = [["stage", "", "seconds", "said"]]
    rows += [[name, status, f"{seconds:.0f}", said[:100]] for name, status, seconds, said in outcomes]
    lines += draw(rows, 2) if markdown else [line.rstrip() for line in report.plain(rows, 4)]
    verdict = f"not passed: {', '.join(bad)}" if bad else "all stages passed"
    return "\n".join([*lines, "", verdict])
