"""`python -m benchmarks gpu-report`: build, tests, sanitizers and benchmarks on an NVIDIA GPU, in one
command.

Builds in place for the GPU that is there, runs the GPU tests, runs the small ones again under
compute-sanitizer, then the benchmarks. Everything is written to one folder, and the summary is printed
last. It needs no network and installs nothing. Status 0 means that all stages passed."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import ROOT, gpu, report
from .check import UsageError
from .gpu import find_tool, no_gpu
from .host import environment

Command = list[str]
SECONDS = 465.0  # the whole report takes less than eight minutes
GPU_TESTS = [  # the small ones are marked `sanitize`
    str(ROOT / "tests" / "cuda" / name)
    for name in ("test_cuda.py", "test_cuda_optimizer.py", "test_cuda_nade.py")
]
START_UP = 20.0  # seconds of a benchmark for imports and for writing its results
PYTHON = sys.executable
COUNTS = r"(?:\d+ [a-z]+(?:, )?)+(?= in [\d.]+)"  # in pytest's last line
PASSES = r"\b[1-9]\d* passed"  # tests that were skipped have not passed
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
    outcomes = run_stages(stages, folder, arguments.seconds, variables)
    return finish(folder, found, outcomes)


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


@dataclass(frozen=True)
class Stage:
    name: str
    commands: Sequence[Command]  # `{seconds}` in an argument is replaced by the seconds that they may take
    limit: float  # seconds, at most
    least: float = 0.0  # seconds that earlier stages leave for it
    says: str = ""  # pattern of the messages in the log, without which the message is the log's last line
    must: Sequence[str] = ()  # patterns without which it has failed, although its commands ended with 0
    variables: Mapping[str, str] = field(default_factory=dict)  # of the environment

    def message(self, log: str) -> str:
        found = list(dict.fromkeys(re.findall(self.says, log, re.MULTILINE))) if self.says else []
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        return "; ".join(found[-2:]) or (lines[-1] if lines else "it printed nothing")


class Outcome(NamedTuple):
    name: str
    status: str
    seconds: float
    said: str


def all_stages(folder: Path) -> list[Stage]:
    def benchmark(name: str, *options: str) -> Command:
        return [PYTHON, "-m", "benchmarks", name, "--device", "cuda", "--output", str(folder), *options]

    build = [[PYTHON, str(ROOT / "setup.py"), "build_ext", "--inplace"], [PYTHON, "-c", CHECK_BUILD]]
    tests = [PYTHON, "-m", "pytest", *GPU_TESTS, "-p", "no:cacheprovider"]
    recurrence = benchmark("recurrence", "--budget={seconds}")

    def sanitized(tool: str, **variables: str) -> Stage:
        """The tests of small shapes under compute-sanitizer, which watches this package's kernels only."""
        options = ["--tool", tool, "--error-exitcode", "99", "--kernel-name", "kernel_substring=rnnkernels"]
        command = [find_tool("compute-sanitizer") or "compute-sanitizer", *options, *tests, "-m", "sanitize"]
        return Stage(tool, [command], 75, 20, f"{COUNTS}|SUMMARY: .+", (PASSES, "SUMMARY:"), variables)

    return [
        Stage("build", build, 200, 60),
        Stage("tests", [tests], 120, 30, COUNTS, (PASSES,)),
        # Without torch's memory cache each tensor is one allocation, whose end memcheck knows.
        sanitized("memcheck", PYTORCH_NO_CUDA_MEMORY_CACHING="1"),
        sanitized("racecheck"),
        Stage("optimizer", [benchmark("optimizer")], 45, 25, r"^.+ in the geometric mean.*$"),
        Stage("nade", [benchmark("nade")], 60, 30, r"^.+ in the geometric mean.*$"),
        Stage("layer", [benchmark("layer")], 45, 25, r"^\d+ networks, .+$"),
        Stage("recurrence", [recurrence], 400, 60, r"^\[\d+/\d+\]|^error: .+"),
    ]


def run_command(command: Command, log: Path, limit: float, variables: Mapping[str, str]) -> int | None:
    """Append the output to the log. After the limit, kill the command and its children, and return None."""
    with log.open("a") as out:
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        try:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=variables, start_new_session=True
            )
        except OSError as error:
            out.write(f"{error}\n")
            return 127
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    seconds: float,
    variables: Mapping[str, str],
    run: Callable[[Command, Path, float, Mapping[str, str]], int | None] = run_command,
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Run the stages in order, each in the time that is left once the later ones have their least."""
    start, outcomes = clock(), []
    for number, stage in enumerate(stages, 1):
        began = clock()
        left = seconds - (began - start) - sum(later.least for later in stages[number:])
        limit = min(stage.limit, max(stage.least, left))
        head = f"[{number}/{len(stages)}] {began - start:4.0f} s  {stage.name}, at most {limit:.0f} s"
        print(head, flush=True)
        log = folder / f"{number:02}-{stage.name}.log"
        status, said = run_stage(stage, log, limit, {**variables, **stage.variables}, run, clock)
        print(f"      {status}: {said}", flush=True)
        outcomes.append(Outcome(stage.name, status, clock() - began, said))
    return outcomes


def run_stage(
    stage: Stage, log: Path, limit: float, variables: Mapping[str, str], run: Any, clock: Callable[[], float]
) -> tuple[str, str]:
    """The status and the message of a stage."""
    start, text = clock(), ""
    log.write_text(text)
    budget = f"{max(10.0, limit - START_UP):.0f}"
    for command in stage.commands:
        left = limit - (clock() - start)
        command = [argument.replace("{seconds}", budget) for argument in command]
        code = run(command, log, left, variables) if left > 0 else None
        text = log.read_text(errors="replace")
        if code is None:
            return "timed out", f"no end after {limit:.0f} s; {stage.message(text)}"
        if code != 0:
            return "failed", f"status {code}: {stage.message(text)}"
    if absent := [pattern for pattern in stage.must if not re.search(pattern, text)]:
        return "failed", f"the log lacks {absent[0]!r}: {stage.message(text)}"
    return "passed", stage.message(text)


# --------------------------------------------------------------------------------------- summary


def finish(folder: Path, found: dict[str, Any], outcomes: Sequence[Outcome]) -> int:
    """Write the JSON file, the full log and the summary; return the status of the report."""
    bad = [outcome.name for outcome in outcomes if outcome.status != "passed"]
    files = {outcome.name: folder / f"{outcome.name}.json" for outcome in outcomes}
    runs = {name: load(path) for name, path in files.items() if path.exists()}
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
    """The document of a benchmark; None if the file is damaged."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
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
    rows = [["stage", "", "seconds", "message"]]
    rows += [[name, status, f"{seconds:.0f}", said[:100]] for name, status, seconds, said in outcomes]
    verdict = f"not passed: {', '.join(bad)}" if bad else "all stages passed"
    return "\n".join([*lines, "", *report.draw(report.Table("", rows, 4), markdown), "", verdict])
