"""The report about a GPU: its stages, their outcomes, and the files that it writes. The GPU is made up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmark_helpers import BENCH, CARD, ROOT, gpu_run

from benchmarks import gpu, gpu_report, host, layer, nade, optimizer, report
from benchmarks.__main__ import main
from benchmarks.gpu_report import Command, Outcome, Stage, run_stages


def stage(name: str, *command: str, **more: Any) -> Stage:
    return Stage(name, [list(command)], more.pop("limit", 20.0), **more)


def python(name: str, text: str, **more: Any) -> Stage:
    return stage(name, sys.executable, "-c", text, **more)


def outcomes_of(stages: list[Stage], folder: Path, seconds: float = 60.0) -> list[tuple[str, str, str]]:
    outcomes = run_stages(stages, folder, seconds, {})
    return [(outcome.name, outcome.status, outcome.said) for outcome in outcomes]


# ---------------------------------------------------------------------------------------- stages


def test_later_stages_run_after_a_failed_one(tmp_path: Path) -> None:
    """A stage ends with its first command that fails, and commands know how long they may take."""
    commands = [[sys.executable, "-c", f"print({n}); raise SystemExit({n == 2})"] for n in (1, 2, 3)]
    stages = [
        python("good", "print('first'); print('all is well')"),
        python("bad", "print('so far', flush=True); raise SystemExit('it broke')"),
        Stage("three", commands, 20.0),
        stage("absent", "no-such-program"),
        python("empty", "print('3 skipped')", must=(r"\d passed",)),
        python("told", "print('--budget={seconds}')", limit=33.0),  # less the time to start
        python("last", "import os; print(os.environ['WORD'])", variables={"WORD": "heard"}),
    ]
    assert outcomes_of(stages, tmp_path) == [
        ("good", "passed", "all is well"),
        ("bad", "failed", "status 1: it broke"),
        ("three", "failed", "status 1: 2"),
        ("absent", "failed", "status 127: [Errno 2] No such file or directory: 'no-such-program'"),
        ("empty", "failed", r"the log lacks '\\d passed': 3 skipped"),
        ("told", "passed", "--budget=13"),
        ("last", "passed", "heard"),
    ]
    lines = (tmp_path / "02-bad.log").read_text().splitlines()
    assert lines[0].startswith("$ ")
    assert lines[-2:] == ["so far", "it broke"]  # of both streams
    assert len(list(tmp_path.glob("*.log"))) == 7


def test_a_command_that_does_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    """A child that survived would write into the folder later."""
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(1.5); pathlib.Path({str(mark)!r}).touch()"
    text = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    found = outcomes_of([python("endless", text, limit=0.7), python("next", "print('on')")], tmp_path)
    assert found[0][:2] == ("endless", "timed out")
    assert found[0][2].startswith("no end after 1 s")
    assert found[1] == ("next", "passed", "on")
    time.sleep(1.5)
    assert not mark.exists()


def test_the_time_is_divided_among_the_stages(tmp_path: Path) -> None:
    """A stage has the time that the later ones leave once they have their least, up to its limit."""
    now, limits = [0.0], []

    def run(command: Command, log: Path, limit: float, variables: Mapping[str, str]) -> int | None:
        limits.append(limit)
        now[0] += float(command[0])
        return 0

    stages = [
        stage("quick", "10", limit=50.0, least=5.0),
        stage("slow", "60", limit=200.0, least=5.0),
        stage("late", "30", limit=50.0, least=20.0),
        stage("last", "1", limit=50.0, least=10.0),
    ]
    run_stages(stages, tmp_path, 100.0, {}, run=run, clock=lambda: now[0])
    assert limits == [50.0, 100 - 10 - 20 - 10, 100 - 70 - 10, 10.0]


# -------------------------------------------------------------------------------------- messages


def the_stage(name: str, folder: Path) -> Stage:
    (found,) = gpu_report.chosen(gpu_report.all_stages(folder), name)
    return found


def lacks(stage: Stage, log: str) -> list[str]:
    return [pattern for pattern in stage.must if not re.search(pattern, log)]


def test_counts_are_read_from_pytests_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the repository's settings, which decide how much it prints."""
    source = "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('no GPU')\n"
    found = {}
    for name, text in (("both", source), ("skipped", source.replace("def test_a(): pass", ""))):
        (tmp_path / f"test_{name}.py").write_text(text)
        monkeypatch.setattr(gpu_report, "GPU_TESTS", [str(tmp_path / f"test_{name}.py")])
        tests = the_stage("tests", tmp_path)
        command = [*tests.commands[0], "-c", str(ROOT / "pyproject.toml")]
        log = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
        found[name] = tests.message(log), lacks(tests, log)
    assert found == {"both": ("1 passed, 1 skipped", []), "skipped": ("1 skipped", [gpu_report.PASSES])}


SANITIZED = """========= COMPUTE-SANITIZER
.....                                                                    [100%]
5 passed, 90 deselected in 41.20s
========= ERROR SUMMARY: 0 errors
"""


def test_messages_of_a_sanitized_run(tmp_path: Path) -> None:
    stage = the_stage("memcheck", tmp_path)
    assert stage.message(SANITIZED) == "5 passed, 90 deselected; SUMMARY: 0 errors"
    assert not lacks(stage, SANITIZED)
    race = SANITIZED.replace("0 errors", "0 hazards displayed (0 errors, 0 warnings)")
    assert "0 hazards displayed" in stage.message(race)
    assert lacks(stage, SANITIZED.replace("ERROR SUMMARY: 0 errors", "")) == ["SUMMARY:"]
    assert lacks(stage, SANITIZED.replace("5 passed, ", "")) == [gpu_report.PASSES]


def test_messages_of_the_benchmarks(tmp_path: Path) -> None:
    stage, log = (
        the_stage("recurrence", tmp_path),
        "[68/69]   90 s  B 1\n[69/69]   92 s  B 16\n...\nwritten: a file\n",
    )
    assert stage.message(log) == "[68/69]; [69/69]"
    assert stage.message(log + "error: B 1: why\n") == "[69/69]; error: B 1: why"
    assert stage.message(log + "error: B 1: why\nerror: B 2: too\n") == "error: B 1: why; error: B 2: too"
    line = "NADE: 4.7x the loop in the geometric mean"
    assert the_stage("nade", tmp_path).message(f"a\n{line}\nb\n") == line
    line = "100 networks, B 32, T 512  all in one call or one network  9.00  3.00   3.00"
    assert the_stage("layer", tmp_path).message(f"   0 s  100 networks\n{line}\nwritten\n") == line


# ---------------------------------------------------------------------------------------- report


@pytest.fixture
def with_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_report, "no_gpu", lambda: None)
    monkeypatch.setattr(gpu, "describe", lambda: dict(CARD))


def test_the_stages_their_order_and_their_commands(with_card: None, tmp_path: Path) -> None:
    stages = gpu_report.all_stages(tmp_path)
    names = "build tests memcheck racecheck optimizer nade layer recurrence"
    assert [stage.name for stage in stages] == names.split()
    assert gpu_report.SECONDS < 480
    assert sum(stage.least for stage in stages) < gpu_report.SECONDS
    commands = {stage.name: [" ".join(c) for c in stage.commands] for stage in stages}
    assert "setup.py build_ext --inplace" in commands["build"][0]
    for stage in ("tests", "memcheck", "racecheck"):
        assert all(test in commands[stage][0] for test in gpu_report.GPU_TESTS)
    for tool in ("memcheck", "racecheck"):
        assert f"--tool {tool} --error-exitcode 99" in commands[tool][0]
        assert commands[tool][0].endswith("-m sanitize")
    assert "recurrence --device cuda" in commands["recurrence"][0]
    assert commands["recurrence"][0].endswith("--budget={seconds}")
    assert [s.name for s in gpu_report.chosen(stages, "tests,build")] == ["build", "tests"]
    with pytest.raises(SystemExit, match="no stage nothing; there are build, tests"):
        gpu_report.chosen(stages, "nothing,build")


def test_stages_build_and_import_this_checkout_for_this_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    variables = gpu_report.build_variables((9, 0))
    assert variables["TORCH_CUDA_ARCH_LIST"] == "9.0a"
    assert variables["RNNKERNELS_CUDA"] == "1"
    assert variables["PYTHONPATH"].split(":") == [str(ROOT), "elsewhere"]


def test_all_benchmarks_need_no_library_besides_torch() -> None:
    """The host of a report may have no network."""
    code = "import importlib, sys, torch._inductor.config, rnnkernels; before = set(sys.modules)\n"
    code += "from benchmarks.__main__ import BENCHMARKS\n"
    code += "for name in BENCHMARKS: importlib.import_module(f'benchmarks.{name}')\n"
    code += "found = {name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names\n"
    code += "print(*sorted(found - {'torch', 'rnnkernels'}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "benchmarks\n", done.stderr


def test_folders_are_named_by_gpu_and_time() -> None:
    name = gpu_report.folder_name("NVIDIA H100 80GB HBM3", datetime(2026, 11, 24, 9, 5, 7))
    assert name == "nvidia-h100-80gb-hbm3-20261124-090507"


def made_documents(folder: Path) -> None:
    """Files as the benchmarks write them, measured on the CPU."""
    report.save_json(gpu_run(peers=("rnn",)), folder / "recurrence.json")
    arguments: Any = SimpleNamespace(quick=True, processor_time=False)
    for name, module in (("optimizer", optimizer), ("nade", nade), ("layer", layer)):
        report.save_json(module.measure(arguments, BENCH), folder / f"{name}.json")


def finished(folder: Path, *outcomes: Outcome) -> int:
    for number, outcome in enumerate(outcomes, 1):
        (folder / f"{number:02}-{outcome.name}.log").write_text(f"log of {outcome.name}\n")
    found = host.environment(1, package=False) | {"card": CARD}
    return gpu_report.finish(folder, found, outcomes)


def test_a_report_has_summary_log_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_documents(tmp_path)
    names = ("recurrence", "optimizer", "nade", "layer")
    outcomes = [Outcome("build", "passed", 61.0, "built for sm_90a")]
    outcomes += [Outcome(name, "passed", 9.0, "ok") for name in names]
    assert finished(tmp_path, *outcomes) == 0
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["failed"] == []
    assert document["environment"]["card"] == CARD
    assert document["environment"]["torch"] == torch.__version__
    assert document["environment"]["rnnkernels"]["version"]
    assert document["stages"][0] == outcomes[0]._asdict()
    for name in names:
        assert document[name] == json.loads((tmp_path / f"{name}.json").read_text())
    whole = (tmp_path / "log.txt").read_text()
    assert whole.index("log of build") < whole.index("log of layer")
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "all stages passed"
    text = "\n".join(printed)
    for piece in ("recurrence, 3 points", "share of floor", "ClippedNesterov", "draws, N 40", "packed, B 16"):
        assert piece in text
    assert re.search(r"build +passed +61 +built for sm_90a", text)
    markdown = (tmp_path / "summary.md").read_text()
    assert re.search(r"\| build +\| passed +\| 61 +\| built for sm_90a +\|", markdown)


def test_failed_stages_are_named_last_and_decide_the_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recurrence.json").write_text('{"cells": [')  # cut short
    outcomes = (
        Outcome("tests", "failed", 3.0, "status 1: 2 failed"),
        Outcome("memcheck", "failed", 0.0, "status 127: no compute-sanitizer"),
        Outcome("recurrence", "timed out", 9.0, "no end after 9 s"),
        Outcome("layer", "passed", 1.0, ""),
    )
    assert finished(tmp_path, *outcomes) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "not passed: tests, memcheck, recurrence"
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["failed"] == ["tests", "memcheck", "recurrence"]
    assert document["recurrence"] is None


def test_the_whole_command_with_other_stages(
    with_card: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line to the status. One stage prints the target of its build."""
    ask = "import os; print(os.environ['TORCH_CUDA_ARCH_LIST'])"
    monkeypatch.setattr(
        gpu_report,
        "all_stages",
        lambda folder: [python("build", ask), python("tests", "raise SystemExit(3)")],
    )
    assert main(["gpu-report", "--output", str(tmp_path), "--only", "build"]) == 0
    assert main(["gpu-report", "--output", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "not passed: tests"
    assert printed.count("passed: 9.0a") == 2
    assert all(folder.name.startswith("nvidia-test-1-") for folder in tmp_path.iterdir())
