"""`python -m benchmarks gpu-report`: build, tests, sanitizers and benchmarks on an NVIDIA GPU, in one
command.

Builds in place for the GPU that is there, runs the GPU tests, runs the small ones again under
compute-sanitizer, then the benchmarks. Everything is written to one folder, and the summary is printed
last. It needs no network and installs nothing. Status 0 means that all stages passed; a stage that could
not run has not passed, unless it is optional."""

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

from . import ROOT, gpu, report
from .check import UsageError
from .gpu import find_tool, no_gpu
from .host import environment
from .stages import Command, Outcome, Stage, last_line, run_stages

SECONDS = 465.0  # the whole report takes less than eight minutes
GPU_TESTS = [  # the small ones are marked `sanitize`
    str(ROOT / "tests" / name) for name in ("test_cuda.py", "test_cuda_optimizer.py", "test_cuda_nade.py")
]
BENCHMARKS = ("optimizer", "nade", "recurrence")
START_UP = 20.0  # seconds of a benchmark for imports and for writing its results
PYTHON = sys.executable
CHECK_BUILD = (
    "from rnnkernels import build_config; c = build_config(); print('built for', *c['cuda_architectures']); "
    "raise SystemExit(None if c['cuda'] else 'the build has no CUDA kernels')"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=ROOT / "benchmark-results", metavar="DIR")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole report")
    parser.add_argument("--only", metavar="STAGE,...", help="run these stages only")


def run(arguments: argparse.Namespace) -> int:
    if why := no_gpu():
        raise UsageError(why)
    found = environment(torch.get_num_threads(), "cuda", package=False)
    folder = arguments.output / folder_name(found["card"]["name"], datetime.now())
    folder.mkdir(parents=True, exist_ok=True)
    stages = chosen(all_stages(folder), arguments.only)
    variables = build_variables(tuple(found["card"]["capability"]))
    print(f"{gpu.line(found['card'])}\n{folder}", flush=True)
    outcomes = run_stages(
        stages, folder, arguments.seconds, variables, show=lambda line: print(line, flush=True)
    )
    return finish(folder, found, stages, outcomes)


def folder_name(name: str, now: datetime) -> str:
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{now:%Y%m%d-%H%M%S}"


def chosen(stages: Sequence[Stage], only: str | None) -> list[Stage]:
    names = [stage.name for stage in stages] if only is None else only.split(",")
    if unknown := set(names) - {stage.name for stage in stages}:
        known = ", ".join(stage.name for stage in stages)
        raise SystemExit(f"--only: no stage {', '.join(sorted(unknown))}; there are {known}")
    return [stage for stage in stages if stage.name in names]


def build_variables(capability: tuple[int, int]) -> dict[str, str]:
    """The environment of all stages: the package of this checkout, built for this GPU alone."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {
        **os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "RNNKERNELS_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": gpu.arch_list(capability),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------- stages


def all_stages(folder: Path) -> list[Stage]:
    def fixed(*commands: Command) -> Any:
        return lambda _seconds: commands

    def benchmark(name: str, *options: str) -> Command:
        return [PYTHON, "-m", "benchmarks", name, "--device", "cuda", "--output", str(folder), *options]

    def recurrence(seconds: float) -> list[Command]:
        return [benchmark("recurrence", f"--budget={max(10.0, seconds - START_UP):.0f}")]

    build = [PYTHON, str(ROOT / "setup.py"), "build_ext", "--inplace"]
    compiler = os.environ.get("CXX", "c++").split()[0]
    run_json = folder / "recurrence.json"
    draw = [PYTHON, "-m", "benchmarks", "show", str(run_json), "--picture", str(folder / "recurrence.png")]
    return [
        Stage(
            "host", fixed(["nvidia-smi"]), 30, 5,
            missing=lambda: lacking([], ["nvidia-smi"]), said=driver_line, optional=True,
        ),
        Stage(
            "build", fixed(build, [PYTHON, "-c", CHECK_BUILD]), 200, 60,
            missing=lambda: lacking(["setuptools", "pybind11"], ["cmake", "ninja", "nvcc", compiler]),
        ),
        Stage(
            "tests", fixed(pytest_command()), 120, 30,
            missing=no_pytest, said=test_counts, wrong=no_test_ran,
        ),
        sanitized("memcheck", {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}),
        sanitized("racecheck", {}),
        Stage("optimizer", fixed(benchmark("optimizer")), 45, 25, said=rates_line),
        Stage("nade", fixed(benchmark("nade")), 60, 30, said=rates_line),
        Stage("recurrence", recurrence, 400, 60, said=points_line),
        Stage("picture", fixed(draw), 20, 10, missing=lambda: no_picture(run_json), optional=True),
    ]  # fmt: skip


def pytest_command(*options: str) -> Command:
    return [PYTHON, "-m", "pytest", *GPU_TESTS, "-p", "no:cacheprovider", *options]


def sanitized(tool: str, variables: dict[str, str]) -> Stage:
    """The tests of small shapes under a tool of compute-sanitizer that watches this package's kernels only.

    For memcheck torch allocates each tensor separately, so that an access beyond a tensor's end is found.
    """
    options = ["--tool", tool, "--error-exitcode", "99", "--kernel-name", "kernel_substring=rnnkernels"]

    def commands(_seconds: float) -> list[Command]:
        return [[find_tool("compute-sanitizer") or "", *options, *pytest_command("-m", "sanitize")]]

    def missing() -> str | None:
        return lacking(["pytest", "hypothesis"], ["compute-sanitizer"])

    return Stage(
        tool, commands, 75, 20,
        missing=missing, said=sanitizer_counts, wrong=nothing_watched, variables=variables,
    )  # fmt: skip


def lacking(modules: Sequence[str], programs: Sequence[str]) -> str | None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    missing += [name for name in programs if find_tool(name) is None]
    return f"this host lacks {', '.join(missing)}" if missing else None


def no_pytest() -> str | None:
    return lacking(["pytest", "hypothesis"], [])


def no_picture(run_json: Path) -> str | None:
    if not run_json.exists():
        return "there is no recurrence.json to draw"
    return None if report.can_draw() else "matplotlib is not installed"


# ------------------------------------------------------------------- messages from the logs


def test_counts(log: str) -> str:
    """The counts in pytest's last line."""
    found = re.findall(r"^=*\s*((?:\d+ [a-z]+(?:, )?)+) in [\d.]+", log, re.MULTILINE)
    return found[-1] if found else last_line(log)


def no_test_ran(log: str) -> str | None:
    """Skipped tests have not passed."""
    return None if re.search(r"\b[1-9]\d* passed", test_counts(log)) else f"no test ran: {test_counts(log)}"


def sanitizer_counts(log: str) -> str:
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.+)", log)
    return f"{test_counts(log)}; {found[-1] if found else 'no summary of compute-sanitizer'}"


def nothing_watched(log: str) -> str | None:
    return no_test_ran(log) if "SUMMARY:" in log else "compute-sanitizer printed no summary"


def driver_line(log: str) -> str:
    found = re.search(r"Driver Version: \S+", log)
    return found[0] if found else last_line(log)


def points_line(log: str) -> str:
    """The number of points measured, or the errors of rnnkernels."""
    if errors := re.findall(r"^error: (.+)", log, re.MULTILINE):
        return f"{errors[0]} (and {len(errors) - 1} more)" if len(errors) > 1 else str(errors[0])
    points = re.findall(r"^\[(\d+)/(\d+)\]", log, re.MULTILINE)
    return f"{points[-1][0]} of {points[-1][1]} points" if points else last_line(log)


def rates_line(log: str) -> str:
    found = re.findall(r"^\w+: .+ in the geometric mean.*$", log, re.MULTILINE)
    return found[-1] if found else last_line(log)


# --------------------------------------------------------------------------------------- summary


def finish(folder: Path, found: dict[str, Any], stages: Sequence[Stage], outcomes: Sequence[Outcome]) -> int:
    """Write the JSON file, the full log and the summary; return the status of the report."""
    optional = {stage.name: stage.optional for stage in stages}
    bad = [outcome.name for outcome in outcomes if not outcome.good(optional[outcome.name])]
    runs = {name: load(folder / f"{name}.json") for name in BENCHMARKS}
    for document in filter(None, runs.values()):
        found |= {"rnnkernels": document["environment"]["rnnkernels"]}
    rows = [outcome._asdict() for outcome in outcomes]
    report.save_json({"environment": found, "stages": rows, "failed": bad, **runs}, folder / "report.json")
    with (folder / "log.txt").open("w") as whole:
        for log in sorted(folder.glob("*.log")):
            whole.write(f"==== {log.stem} ====\n{log.read_text(errors='replace')}\n")
    (folder / "summary.md").write_text(summary(found, outcomes, bad, runs, markdown=True) + "\n")
    print(f"\n{summary(found, outcomes, bad, runs)}", flush=True)
    return 1 if bad else 0


def load(path: Path) -> dict[str, Any] | None:
    """A benchmark that was stopped may have left no file or a part of one."""
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
    """The summaries of the benchmarks, then the stages, then the verdict."""
    where = f"torch {found['torch']}, commit {found['git_commit']}, {found['date']}"
    lines = [gpu.line(found["card"]), "", where, ""]
    for name, document in runs.items():
        if document:
            module = report.module_of(document)
            left_out = len(document.get("points_left_out", ()))
            lines += [f"{name}, {len(document['cells'])} points, {left_out} left out", ""]
            lines += [*report.draw(module.tables(document)[-1], markdown), ""]
            lines += getattr(module, "networks_notes", lambda document: [])(document)
    rows = [["stage", "", "seconds", "message"]]
    rows += [[name, status, f"{seconds:.0f}", said[:100]] for name, status, seconds, said in outcomes]
    verdict = f"not passed: {', '.join(bad)}" if bad else "all stages passed"
    return "\n".join([*lines, "", *report.draw(report.Table("", rows, 4), markdown), "", verdict])
