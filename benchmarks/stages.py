"""Stages of a report: commands with a log, a time limit and an outcome. All run, even after a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PASSED, FAILED, TIMED_OUT, MISSING = "passed", "failed", "timed out", "missing"

Command = list[str]
RunCommand = Callable[[Command, Path, float, Mapping[str, str]], int | None]  # None: it did not end in time


def last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


@dataclass(frozen=True)
class Stage:
    name: str
    commands: Callable[[float], Sequence[Command]]  # for the seconds that the stage may take
    limit: float  # seconds, at most
    least: float = 0.0  # seconds that earlier stages leave for it
    missing: Callable[[], str | None] = lambda: None  # why it cannot run here
    said: Callable[[str], str] = last_line  # the outcome's message, from the log
    wrong: Callable[[str], str | None] = lambda log: None  # the error, although every command ended with 0
    variables: Mapping[str, str] = field(default_factory=dict)  # of the environment
    optional: bool = False  # a report without it is complete


class Outcome(NamedTuple):
    name: str
    status: str
    seconds: float
    said: str

    def good(self, optional: bool) -> bool:
        return self.status == PASSED or (optional and self.status == MISSING)


def run_command(command: Command, log: Path, limit: float, variables: Mapping[str, str]) -> int | None:
    """Append the output to the log. After the limit, kill the command and all that it started."""
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
    run: RunCommand = run_command,
    clock: Callable[[], float] = time.monotonic,
    show: Callable[[str], object] = print,
) -> list[Outcome]:
    """Run the stages in order, each in the time that is left once the later ones have their least."""
    start, outcomes = clock(), []
    for number, stage in enumerate(stages, 1):
        spent = clock() - start
        limit = min(
            stage.limit, max(stage.least, seconds - spent - sum(later.least for later in stages[number:]))
        )
        show(f"[{number}/{len(stages)}] {spent:4.0f} s  {stage.name}, at most {limit:.0f} s")
        log = folder / f"{number:02}-{stage.name}.log"
        began = clock()
        status, said = run_stage(stage, log, limit, variables, run, clock)
        outcomes.append(Outcome(stage.name, status, clock() - began, said))
        show(f"      {status}: {said}")
    return outcomes


def run_stage(
    stage: Stage,
    log: Path,
    limit: float,
    variables: Mapping[str, str],
    run: RunCommand,
    clock: Callable[[], float],
) -> tuple[str, str]:
    """The status and the message of a stage."""
    start = clock()
    log.touch()
    if why := stage.missing():
        log.write_text(f"{why}\n")
        return MISSING, why
    for command in stage.commands(limit):
        left = limit - (clock() - start)
        code = run(command, log, left, {**variables, **stage.variables}) if left > 0 else None
        text = log.read_text(errors="replace")
        if code is None:
            return TIMED_OUT, f"no end after {limit:.0f} s; its last line: {last_line(text)}"
        if code != 0:
            return FAILED, f"status {code}: {stage.said(text)}"
    text = log.read_text(errors="replace")
    why = stage.wrong(text)
    return (FAILED, why) if why else (PASSED, stage.said(text))
