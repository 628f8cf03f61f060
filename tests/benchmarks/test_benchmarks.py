"""The benchmarks: their figures are consistent, and they refuse to time a wrong answer.

No test asserts a time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from benchmark_helpers import BENCH, ROOT, TINY

from benchmarks import load as load_benchmark
from benchmarks import optimizer, recurrence, report
from benchmarks.__main__ import main
from benchmarks.check import TOLERANCES, WrongAnswerError, compare
from benchmarks.host import OtherLoad, environment, environment_line
from benchmarks.loops import from_loop, leaky_loop
from benchmarks.peers import PEERS, RECURRENCE, Peer, make_ours
from benchmarks.problem import OURS, Cell, Contender, Point, Problem, make_problem
from benchmarks.recurrence_report import PASSES, gemm_share, peer_over_ours, share
from benchmarks.timing import Timing, TimingPlan, measure, quantile

TINY_RUN = ["recurrence", "--quick", "--threads", "1", "--grid", "3,7,4,5; 1,4,2,6"]


class Run(NamedTuple):
    path: Path
    printed: str

    @property
    def document(self) -> dict[str, Any]:
        return load(self.path)


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


@pytest.fixture(autouse=True, scope="module")
def same_environment() -> Iterator[None]:
    """A run passes the number of threads to JAX through the environment; it does not here."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(recurrence, "prepare_jax", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def run(same_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of `recurrence` with two peers on two tiny problems."""
    folder, threads = tmp_path_factory.mktemp("run"), torch.get_num_threads()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*TINY_RUN, "--peers", "rnn,loop", "--output", str(folder)]) == 0
    torch.set_num_threads(threads)
    return Run(folder / "recurrence.json", printed.getvalue())


# ------------------------------------------------------------------------------------ recurrence


def test_a_run_has_the_times_of_all_contenders(run: Run) -> None:
    assert [cell["B"] for cell in run.document["cells"]] == [3, 1]
    for cell in run.document["cells"]:
        for name in PASSES:
            assert list(cell[name]["times"]) == [OURS, "rnn", "loop"]
            for timing in (*cell[name]["times"].values(), cell[name]["recurrence"]):
                assert 0 < timing["p10_s"] <= timing["median_s"] <= timing["p90_s"]
                assert timing["calls"] >= 2
    lines = run.printed.splitlines()
    assert max(map(len, lines)) <= report.WIDTH
    assert "threads on" in lines[0]
    assert lines[-1].startswith("forward + backward")


def test_ratios_follow_from_the_medians(run: Run) -> None:
    """Of the two cells, whose times are made up, the first has two peers, the second one."""
    document = run.document
    cells = (
        (Cell(1, 10, 3, 5), {OURS: [2.0, 2.0, 9.0], "rnn": [8.0], "loop": [5.0, 7.0], RECURRENCE: [0.5]}),
        (Cell(4, 10, 3, 5), {OURS: [1.0], "rnn": [9.0], RECURRENCE: [0.5]}),
    )
    document["gemm"]["best_flops_per_s"] = 4000.0
    document["cells"] = [
        recurrence.cell_figures(
            Point(cell), {(key, name): Timing(each) for key, each in times.items() for name in PASSES}, None
        )
        for cell, times in cells
    ]
    first = document["cells"][0]
    assert peer_over_ours(first["forward"]) == {"rnn": 4.0, "loop": 3.0}
    assert share(document, first, "forward") == pytest.approx(2 * 10 * 25 / 0.5 / 4000)
    assert share(document, first, "forward_backward") == pytest.approx(6 * 10 * 25 / 0.5 / 4000)
    forward, _, summary = (table.rows for table in recurrence.tables(document))
    assert forward[0] == ["B", "T", "I", "H", OURS, "nn.RNN", "loop", "vs best", "vs loop", "gemm"]
    assert forward[1] == ["1", "10", "3", "5", "2000", "8000", "6000", "3.00x", "3.00x", "25%"]
    assert forward[2] == ["4", "10", "3", "5", "1000", "9000", "-", "9.00x", "-", "100%"]
    # Geometric means: best of 3 and 9, nn.RNN of 4 and 9, gemm of 25 % and 100 %.
    assert summary[0] == ["geometric means", "", "cells", "vs best", "least", "nn.RNN", "loop", "gemm"]
    assert summary[1] == ["forward", "float32", "2", "5.20x", "3.00x", "6.00x", "3.00x", "50%"]


def test_a_run_on_an_unsteady_host_has_a_note(run: Run) -> None:
    document = run.document
    first, second = document["cells"]
    for cell in (first, second):
        cell["gemm"]["median_s"] = 2 * document["gemm"]["size"] ** 3 / document["gemm"]["best_flops_per_s"]
    assert gemm_share(document, first) == pytest.approx(1)
    assert "Unsteady" not in report.text(document)
    second["gemm"]["median_s"] *= 2
    assert "by cell: 100, 50." in " ".join(report.text(document).split())


def test_with_one_row_the_scan_is_compared_with_reading_its_matrix(run: Run) -> None:
    many, one = run.document["cells"]
    assert "cache" not in many
    size = one["T"] * 6 * 16 * 4  # H 6 in panels of 16 columns, float32
    assert one["cache"]["read_bytes_per_s"] == pytest.approx(size / one["cache"]["read"]["median_s"])
    rate = size / one["forward"]["recurrence"]["median_s"]
    assert f"reads its matrix at {rate / 1e9:.0f} GB/s" in " ".join(run.printed.split())


def test_environment_names_what_the_figures_depend_on(run: Run) -> None:
    found = run.document["environment"]
    assert found["torch"] == torch.__version__
    assert found["threads"] == 1
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["instruction_sets"]
    assert found["rnnkernels"]["version"]
    assert str(ROOT) not in json.dumps(found)
    assert environment_line(environment(3)).count("3 threads on") == 1
    cores = OtherLoad().cores()
    assert cores is None or cores >= 0


def test_a_saved_run_is_shown_again(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "deep" / "again.svg"
    assert main(["show", str(run.path), "--picture", str(picture)]) == 0
    assert capsys.readouterr().out == run.printed
    assert picture.exists() == run.path.with_suffix(".png").exists() == report.can_draw()


def test_markdown_is_a_table(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run.path), "--markdown"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (2 + 2) + (2 + 2)
    assert [cell.strip() for cell in rows[0].split("|")[1:5]] == ["B", "T", "I", "H"]
    assert rows[1] == "|" + "--:|" * 10
    assert rows[9] == "|:--|:--|" + "--:|" * 6


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results" / "cpu").glob("*.json")), ids=str)
def test_committed_results_are_shown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "torch 2.13.0" in lines[0]
    assert len(lines) > len(load(path)["cells"])


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_every_peer_runs_from_the_command_line(tmp_path: Path, dtype: str) -> None:
    """In a process of its own: JAX reads its threads and its precision once."""
    command = [sys.executable, "-m", "benchmarks", *TINY_RUN, "--dtype", dtype, "--output", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    document = load(tmp_path / "recurrence.json")
    on_cpu = [name for name, peer in PEERS.items() if "cpu" in peer.devices]
    assert all(list(cell["forward"]["times"]) == [OURS, *on_cpu] for cell in document["cells"])
    assert document["environment"]["jax"]["version"]


def test_a_missing_peer_is_skipped_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)  # makes `import jax` fail
    assert main([*TINY_RUN, "--peers", "loop,scan", "--output", str(tmp_path)]) == 0
    assert "Not measured: lax.scan (JAX is not installed)." in capsys.readouterr().out
    assert load(tmp_path / "recurrence.json")["skipped"] == {"scan": "JAX is not installed"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--grid", "1,2,3"],
        ["--grid", "1,2,3,0"],
        ["--grid", "1,2,x,4"],
        ["--grid", ";"],
        ["--peers", "nobody"],
        ["--threads", "0"],
        ["--dtype", "float16"],
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: Any = main(["recurrence", *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert arguments[0] in capsys.readouterr().err


# --------------------------------------------------------------------------------- wrong answers


def wrong_decay(problem: Problem) -> Contender:
    contender = from_loop(problem, lambda x, weights, decay: leaky_loop(x, weights, 0.79))
    contender.decay = problem.decay
    return contender


def wrong_gradient(problem: Problem) -> Contender:
    """The output is right, but the last of 7 steps is missing in the gradient."""

    def loop(*arguments: Any) -> torch.Tensor:
        output = leaky_loop(*arguments)
        return torch.cat((output[:-1], output[-1:].detach()))

    return from_loop(problem, loop)


def not_finite(problem: Problem) -> Contender:
    return from_loop(problem, lambda *arguments: leaky_loop(*arguments) * math.nan)


def failing(problem: Problem) -> Contender:
    raise NotImplementedError("not for these sizes\nand more")


@pytest.mark.parametrize(
    ("make", "message", "timed"),
    [
        (wrong_decay, "wrong at B 3, T 7, I 4, H 5: output is wrong: relative error", []),
        (wrong_gradient, "wrong at B 3, T 7, I 4, H 5: gradient of weight_", ["forward"]),
        (not_finite, "wrong at B 3, T 7, I 4, H 5: output is wrong: relative error nan", []),
        (failing, "NotImplementedError: not for these sizes", []),
    ],
)
def test_a_peer_that_is_wrong_or_fails_is_not_timed_and_has_a_note(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[Problem], Contender], message: str, timed: list[str]
) -> None:
    """Where only the gradients are wrong, forward is timed."""
    monkeypatch.setitem(PEERS, "wrong", Peer("wrong one", make))
    document = recurrence.measure_points([Point(TINY)], ["wrong", "rnn"], BENCH, gemm_size=8)
    (cell,) = document["cells"]
    assert message in cell["failed"]["wrong"]
    assert [name for name in PASSES if "wrong" in cell[name]["times"]] == timed
    assert all({OURS, "rnn"} <= set(cell[name]["times"]) for name in PASSES)
    assert recurrence.failures(document) == []
    assert any(note.startswith("Failed: wrong one at B 3") for note in recurrence.notes(document))


@pytest.mark.parametrize("make", [wrong_decay, wrong_gradient, failing])
def test_if_ours_is_wrong_or_fails_the_peers_are_measured_and_the_run_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make: Any
) -> None:
    monkeypatch.setattr(recurrence, "make_ours", make)
    command = ["recurrence", "--quick", "--grid", "3,7,4,5", "--peers", "rnn"]
    assert main([*command, "--output", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "error: B 3, T 7, I 4, H 5, float32: " in printed.err
    assert "Failed: rnnkernels at B 3, T 7, I 4, H 5, float32: " in " ".join(printed.out.split())
    (cell,) = load(tmp_path / "recurrence.json")["cells"]
    assert list(cell["forward_backward"]["times"]) == ["rnn"]


def test_a_wrong_shape_is_named() -> None:
    problem = make_problem(TINY, torch.float32, 0.8, seed=1)
    good = PEERS["loop"].make(problem).results()
    short = good._replace(output=good.output[1:])
    with pytest.raises(WrongAnswerError, match=r"is \[6, 3, 5\], expected \[7, 3, 5\]"):
        compare("short", problem, short, good, TOLERANCES[torch.float32])


def test_gradients_are_new_at_each_call() -> None:
    """Accumulated gradients would be right at the first call only, and take another time."""
    problem = make_problem(TINY, torch.float64, 0.8, seed=1)
    for make in (make_ours, PEERS["rnn"].make, PEERS["loop"].make):
        contender = make(problem)
        first = {name: g.clone() for name, g in contender.results().gradients.items()}
        for name, gradient in contender.results().gradients.items():
            torch.testing.assert_close(gradient, first[name])


# ---------------------------------------------------------------------------------------- timing


def test_statistics_of_made_up_numbers() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.1) == pytest.approx(1.0)
    assert quantile([5.0], 0.9) == 5.0
    assert report.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert report.geometric_mean([]) is None
    figures = Timing([4.0, 1.0, 2.0]).figures()
    assert figures["median_s"] == 2.0
    assert figures["calls"] == 3
    milliseconds = [1.234e-3, 0.9996, 12.3456, 123.45, 12345.6]
    assert [report.digits(ms) for ms in milliseconds] == ["0.00123", "1.00", "12.3", "123", "12300"]


def test_measure_interleaves_and_spares_slow_tasks() -> None:
    calls: list[str] = []
    durations = {"quick": 0.01, "slow": 3.0}

    def stopwatch(task: Callable[[], object]) -> float:
        task()
        return durations[calls[-1]]

    plan = TimingPlan(seconds=60, rounds=4, rest=0.0)
    timings = measure({name: partial(calls.append, name) for name in durations}, plan, stopwatch)
    assert timings["slow"].times == [3.0] * plan.slow_calls
    assert timings["slow"].slow
    assert timings["quick"].times == [0.01] * (4 * 2)  # a turn of 20 ms holds two calls
    assert timings["quick"].median == 0.01
    assert calls.index("slow") < len(calls) - 1 - calls[::-1].index("quick")


def test_measure_stops_at_its_time_but_not_before_the_least_rounds() -> None:
    plan = TimingPlan(seconds=0.0, rounds=50, least_rounds=2, rest=0.0, turn=0.0)
    timings = measure({"a": lambda: None}, plan, stopwatch=lambda task: 1e-3)
    assert len(timings["a"].times) == 2


# ------------------------------------------------------------------------------ other benchmarks


def quick_run(name: str, folder: Path, threads: int = 1) -> list[dict[str, Any]]:
    """The cells of a benchmark's quick run."""
    assert main([name, "--quick", "--output", str(folder), "--threads", str(threads)]) == 0
    cells: list[dict[str, Any]] = load(folder / f"{name}.json")["cells"]
    return cells


def test_optimizer_times_both_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = quick_run("optimizer", tmp_path)
    assert capsys.readouterr().out.count("ClippedNesterov") >= 2
    assert {cell["rule"] for cell in cells} == {"ClippedNesterov", "ClippedAdamW"}
    assert all(cell["contenders"]["ours"]["median_s"] > 0 for cell in cells)


def test_optimizer_refuses_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"ours": lambda params: lambda: params[0].data.add_(1.0)}
    monkeypatch.setitem(optimizer.RULES, "ClippedNesterov", optimizer.RULES["ClippedNesterov"] | wrong)
    with pytest.raises(WrongAnswerError, match="ours differs from torch's plain form"):
        optimizer.check("ClippedNesterov", [(3, 4), (5,)])


def test_layer_times_its_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = quick_run("layer", tmp_path)
    shown = capsys.readouterr().out
    assert "packed" in shown
    assert "subnormal" in shown
    for cell in cells:
        assert cell["ratio"] == pytest.approx(cell["asked"]["median_s"] / cell["plain"]["median_s"])


def test_memory_is_measured_in_one_process_per_case(tmp_path: Path) -> None:
    cells = quick_run("memory", tmp_path)
    peaks = {(c["nonlinearity"], c["way"]): c["peak_bytes"] / c["output_bytes"] for c in cells}
    # The output and f are kept; backward has a block of gradients, 8 MiB compared with the output's 20.
    for nonlinearity, kept in (("relu", 1.4), ("tanh", 2.4)):
        assert peaks[nonlinearity, "kept"] > kept - 0.1
        assert peaks[nonlinearity, "every"] < 1.5
        assert peaks[nonlinearity, "truncated"] < 0.5
    assert all(peaks["relu", way] > 0 for way in ("rnnkernels", "rnn", "loop"))


def test_scaling_varies_one_size_at_a_time(tmp_path: Path) -> None:
    cells = quick_run("scaling", tmp_path, threads=2)
    assert torch.get_num_threads() == 2
    for cell in cells:
        sizes = cell["cell"] | {"threads": cell["threads"]}
        middle = {"B": 16, "T": 100, "I": 32, "H": 128, "threads": 2}
        assert sizes == middle | {cell["axis"]: cell["value"]}
        assert cell["step"]["median_s"] > 0
    assert {cell["axis"] for cell in cells} == {"T", "B", "H", "threads"}
    assert (tmp_path / "scaling.png").exists() == report.can_draw()


def test_call_times_the_parts_of_a_tiny_call_and_one_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = quick_run("call", tmp_path)
    assert sum(cell["call"]["median_s"] > 0 for cell in cells if "call" in cell) == 10
    steps = [cell for cell in cells if "steps" in cell]
    assert [(cell["B"], cell["H"]) for cell in steps] == [(1, 16), (16, 16)]
    for figures in (figures for cell in steps for figures in cell["steps"].values()):
        assert list(figures) == ["LeakyRNNCell", "LeakyRNN", "nn.RNNCell"]
    shown = capsys.readouterr().out
    assert "LeakyRNN, forward and backward" in shown
    assert "cell / peer" in shown


def test_load_counts_the_steps_of_all_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = quick_run("load", tmp_path, threads=2)
    assert [(cell["processes"], cell["threads"]) for cell in cells] == [(1, None), (2, None), (1, 16)]
    assert all(cell["steps_per_s"] > 0 for cell in cells)
    shown = capsys.readouterr().out
    assert "2 processes" in shown
    assert "share of the default" in shown


def test_load_adds_up_processes_and_says_if_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shares are those of one process alone, by contender and sizes."""
    sizes = {"B": 1, "T": 2, "I": 3, "H": 4}
    rates = [("rnnkernels", 1, None, 10.0), ("rnnkernels", 2, None, 15.0), ("rnn", 1, None, 4.0),
             ("rnn", 2, None, 1.0), ("rnnkernels", 1, 16, 5.0)]  # fmt: skip
    document = {
        "benchmark": "load",
        "cells": [
            {
                "cell": sizes,
                "contender": name,
                "processes": processes,
                "threads": threads,
                "steps_per_s": rate,
            }
            for name, processes, threads, rate in rates
        ],
    }
    more, together = load_benchmark.tables(document)
    assert together.rows[1:] == [
        ["1, 2, 3, 4", "rnnkernels", "10.0", "15.0 (150%)"],
        ["1, 2, 3, 4", "nn.RNN", "4.00", "1.00 (25%)"],
    ]
    assert more.rows[1:] == [["1, 2, 3, 4", "16", "5.00", "50%"]]
    case = load_benchmark.Case(Cell(1, 2, 3, 4), "no contender", 1)
    with pytest.raises(RuntimeError, match=r"a process of B 1, .* ended with status 1"):
        load_benchmark.steps_per_second(case, 0.1)
