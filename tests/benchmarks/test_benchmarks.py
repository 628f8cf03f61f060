"""The benchmarks: their figures are consistent, and they refuse to time a wrong answer.

No test asserts a time.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from benchmark_helpers import ROOT, TINY

from benchmarks import optimizer, report
from benchmarks.__main__ import main
from benchmarks.check import TOLERANCES, WrongAnswerError, compare
from benchmarks.host import Gemm, OtherLoad, environment, environment_line
from benchmarks.loops import from_loop, leaky_loop
from benchmarks.peers import PEERS, RECURRENCE, Peer, make_ours
from benchmarks.problem import OURS, Cell, Contender, Problem, make_problem
from benchmarks.recurrence_report import PASSES, gemm_share, pass_figures
from benchmarks.timing import Timing, TimingPlan, measure, quantile

needs_matplotlib = pytest.mark.skipif(not report.can_draw(), reason="matplotlib is not installed")
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run passes the number of threads to JAX through the environment."""
    for name in ("NPROC", "XLA_FLAGS", "JAX_PLATFORMS"):
        # Set before removed, so that a variable that did not exist is removed again.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def tiny_run(folder: Path, *extra: str) -> int:
    fixed = ["--quick", "--rounds", "2", "--threads", "1", "--seconds", "0.1"]
    return main(["recurrence", *fixed, "--grid", "3,7,4,5; 1,4,2,6", "--output", str(folder), *extra])


def quick_run(name: str, folder: Path, threads: int = 1) -> dict[str, Any]:
    """The document of a benchmark's quick run."""
    assert main([name, "--quick", "--output", str(folder), "--threads", str(threads)]) == 0
    return load(folder, name)


def load(folder: Path, name: str = "recurrence") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return document


def test_ratios_follow_from_the_medians(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny_run(tmp_path, "--peers", "rnn,loop") == 0
    document = load(tmp_path)
    assert [cell["B"] for cell in document["cells"]] == [3, 1]
    for cell in document["cells"]:
        for name in PASSES:
            figures = cell[name]
            medians = {who: timing["median_s"] for who, timing in figures["times"].items()}
            assert list(medians) == [OURS, "rnn", "loop"]
            for peer, ratio in figures["peer_over_ours"].items():
                assert ratio == pytest.approx(medians[peer] / medians[OURS])
            assert figures["best_peer"] == min(("rnn", "loop"), key=medians.__getitem__)
            assert figures["best_peer_over_ours"] == min(figures["peer_over_ours"].values())
            flops = {"forward": 2, "forward_backward": 6}[name] * cell["T"] * cell["B"] * cell["H"] ** 2
            rate = flops / figures["recurrence"]["median_s"]
            share = rate / document["gemm"]["best_flops_per_s"]
            assert figures["recurrence_share_of_gemm"] == pytest.approx(share)
            for timing in figures["times"].values():
                assert 0 < timing["p10_s"] <= timing["median_s"] <= timing["p90_s"]
                assert timing["calls"] >= 2
    for name in PASSES:
        ratios = [cell[name]["peer_over_ours"]["loop"] for cell in document["cells"]]
        mean = document["summary"][name]["peer_over_ours"]["loop"]
        assert mean == pytest.approx(math.sqrt(ratios[0] * ratios[1]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= report.WIDTH
    assert "threads on" in lines[0]
    assert lines[-1].startswith("forward + backward")


def test_a_run_on_an_unsteady_host_has_a_note(tmp_path: Path) -> None:
    assert tiny_run(tmp_path, "--peers", "none") == 0
    document = load(tmp_path)
    first, second = document["cells"]
    for cell in (first, second):
        cell["gemm"]["median_s"] = 2 * document["gemm"]["size"] ** 3 / document["gemm"]["best_flops_per_s"]
    assert gemm_share(document, first) == pytest.approx(1)
    assert "Unsteady" not in report.text(document)
    second["gemm"]["median_s"] *= 2
    assert "by cell: 100, 50." in " ".join(report.text(document).split())


def test_with_one_row_the_scan_is_compared_with_reading_its_matrix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_run(tmp_path, "--peers", "none") == 0
    many, one = load(tmp_path)["cells"]
    assert "cache" not in many
    size = one["T"] * 6 * 16 * 4  # H 6 in panels of 16 columns, float32
    assert one["cache"]["read_bytes_per_s"] == pytest.approx(size / one["cache"]["read"]["median_s"])
    assert one["cache"]["scan_bytes_per_s"] == pytest.approx(size / one["forward"]["recurrence"]["median_s"])
    assert "one thread reads its cache" in " ".join(capsys.readouterr().out.split())


def test_environment_names_what_the_figures_depend_on(tmp_path: Path) -> None:
    assert tiny_run(tmp_path, "--peers", "none") == 0
    found = load(tmp_path)["environment"]
    assert found["torch"] == torch.__version__
    assert found["threads"] == 1
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["rnnkernels"]["version"]
    assert str(ROOT) not in json.dumps(found)


@needs_matplotlib
def test_picture_and_saved_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "deep" / "picture.png"
    assert tiny_run(tmp_path, "--peers", "rnn", "--picture", str(picture)) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    again = tmp_path / "again.svg"
    assert main(["show", str(tmp_path / "recurrence.json"), "--picture", str(again)]) == 0
    assert capsys.readouterr().out == printed
    assert "<svg" in again.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results" / "cpu").glob("*.json")), ids=str)
def test_committed_results_are_shown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "torch 2.13.0" in lines[0]
    assert len(lines) > len(json.loads(path.read_text())["cells"])


def test_markdown_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny_run(tmp_path, "--peers", "loop", "--markdown") == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (2 + 2) + (2 + 2)
    assert [cell.strip() for cell in rows[0].split("|")[1:5]] == ["B", "T", "I", "H"]


@needs_jax
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_every_peer_runs_from_the_command_line(tmp_path: Path, dtype: str) -> None:
    """In a process of its own: JAX reads its threads and its precision once."""
    command = [sys.executable, "-m", "benchmarks", "recurrence", "--quick", "--grid", "3,7,4,5"]
    command += ["--rounds", "1", "--seconds", "0.1", "--dtype", dtype, "--output", str(tmp_path)]
    on_cpu = [name for name in PEERS if "cpu" in PEERS[name].default_on or name == "naive"]
    command += ["--peers", ",".join(on_cpu), "--threads", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    document = load(tmp_path)
    assert list(document["cells"][0]["forward"]["times"]) == [OURS, *on_cpu]
    assert document["environment"]["jax"]["version"]


def test_a_missing_peer_is_skipped_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)  # makes `import jax` fail
    assert tiny_run(tmp_path, "--peers", "loop,scan") == 0
    assert "Not measured: lax.scan (JAX is not installed)." in capsys.readouterr().out
    assert load(tmp_path)["skipped"] == {"scan": "JAX is not installed"}


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wrong_decay, "wrong at B 3, T 7, I 4, H 5: output is wrong: relative error"),
        (wrong_gradient, "wrong at B 3, T 7, I 4, H 5: gradient of weight_"),
        (not_finite, "wrong at B 3, T 7, I 4, H 5: output is wrong: relative error nan"),
    ],
)
def test_a_wrong_contender_ends_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Problem], Contender],
    message: str,
) -> None:
    monkeypatch.setitem(PEERS, "wrong", Peer("wrong", make))
    assert tiny_run(tmp_path, "--peers", "wrong") == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert not (tmp_path / "recurrence.json").exists()


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


def test_statistics_of_made_up_numbers() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.1) == pytest.approx(1.0)
    assert quantile([5.0], 0.9) == 5.0
    assert report.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert report.geometric_mean([]) is None
    figures = Timing([4.0, 1.0, 2.0]).figures()
    assert figures["median_s"] == 2.0
    assert figures["calls"] == 3


def test_pass_figures_of_made_up_numbers() -> None:
    timings = {
        (OURS, "forward"): Timing([2.0, 2.0, 9.0]),
        ("rnn", "forward"): Timing([8.0]),
        ("loop", "forward"): Timing([5.0, 7.0]),
        ("loop", "forward_backward"): Timing([1.0]),
        (RECURRENCE, "forward"): Timing([0.5]),
    }
    figures = pass_figures(Cell(1, 10, 3, 5), "forward", timings, gemm_rate=4000.0)
    assert figures["peer_over_ours"] == {"rnn": 4.0, "loop": 3.0}
    assert (figures["best_peer"], figures["best_peer_over_ours"]) == ("loop", 3.0)
    assert figures["recurrence_share_of_gemm"] == pytest.approx(2 * 10 * 25 / 0.5 / 4000)


def test_measure_interleaves_and_spares_slow_tasks() -> None:
    calls: list[str] = []
    durations = {"quick": 0.01, "slow": 3.0}

    def stopwatch(task: Callable[[], object]) -> float:
        return durations[str(task())]

    def task(name: str) -> Callable[[], object]:
        def call() -> str:
            calls.append(name)
            return name

        return call

    plan = TimingPlan(seconds=60, rounds=4, rest=0.0)
    timings = measure({name: task(name) for name in durations}, plan, stopwatch=stopwatch)
    assert timings["slow"].times == [3.0] * plan.slow_calls
    assert timings["slow"].slow
    assert timings["quick"].times == [0.01] * (4 * 2)  # a turn of 20 ms holds two calls
    assert calls.index("slow") < len(calls) - 1 - calls[::-1].index("quick")
    assert median(timings["quick"].times) == timings["quick"].median


def test_measure_stops_at_its_time_but_not_before_the_least_rounds() -> None:
    plan = TimingPlan(seconds=0.0, rounds=50, least_rounds=2, rest=0.0, turn=0.0)
    timings = measure({"a": lambda: None}, plan, stopwatch=lambda task: 1e-3)
    assert len(timings["a"].times) == 2


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
    with pytest.raises(SystemExit) as stop:
        main(["recurrence", *arguments])
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_times_are_printed_with_three_digits() -> None:
    milliseconds = [1.234e-3, 0.9996, 12.3456, 123.45, 12345.6]
    assert [report.digits(ms) for ms in milliseconds] == ["0.00123", "1.00", "12.3", "123", "12300"]


def test_the_host_is_measured_and_described() -> None:
    gemm = Gemm(8, torch.float64)
    torch.testing.assert_close(gemm(), gemm._a @ gemm._b)
    assert gemm.flops == 2 * 8**3
    cores = OtherLoad().cores()
    assert cores is None or cores >= 0
    assert environment_line(environment(3)).count("3 threads on") == 1


def test_optimizer_benchmark_checks_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = quick_run("optimizer", tmp_path)
    assert capsys.readouterr().out.count("ClippedNesterov") >= 2
    assert {cell["rule"] for cell in document["cells"]} == {"ClippedNesterov", "ClippedAdamW"}
    assert all(cell["contenders"]["ours"]["median_s"] > 0 for cell in document["cells"])
    assert document["environment"]["torch"]


def test_optimizer_benchmark_refuses_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"ours": lambda params: lambda: params[0].data.add_(1.0)}
    monkeypatch.setitem(optimizer.RULES, "ClippedNesterov", optimizer.RULES["ClippedNesterov"] | wrong)
    with pytest.raises(WrongAnswerError, match="ours differs from torch's plain form"):
        optimizer.check("ClippedNesterov", [(3, 4), (5,)])


def test_layer_benchmark_times_its_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = quick_run("layer", tmp_path)["cells"]
    shown = capsys.readouterr().out
    assert "packed" in shown
    assert "faded" in shown
    assert all(cell["asked"]["median_s"] > 0 and cell["plain"]["median_s"] > 0 for cell in cells)


def test_memory_is_measured_in_one_process_per_case(tmp_path: Path) -> None:
    cells = quick_run("memory", tmp_path)["cells"]
    peaks = {(c["nonlinearity"], c["way"]): c["peak_bytes"] / c["output_bytes"] for c in cells}
    # The output and f are kept; backward has a block of gradients, 8 MiB compared with the output's 20.
    for nonlinearity, kept in (("relu", 1.4), ("tanh", 2.4)):
        assert peaks[nonlinearity, "kept"] > kept - 0.1
        assert peaks[nonlinearity, "every"] < 1.5
        assert peaks[nonlinearity, "truncated"] < 0.5
    assert all(peaks["relu", way] > 0 for way in ("rnnkernels", "rnn", "loop"))


def test_scaling_varies_one_size_at_a_time(tmp_path: Path) -> None:
    cells = quick_run("scaling", tmp_path, threads=2)["cells"]
    assert torch.get_num_threads() == 2
    for cell in cells:
        sizes = cell["cell"] | {"threads": cell["threads"]}
        middle = {"B": 16, "T": 100, "I": 32, "H": 128, "threads": 2}
        assert sizes == middle | {cell["axis"]: cell["value"]}
        assert cell["step"]["median_s"] > 0
    assert {cell["axis"] for cell in cells} == {"T", "B", "H", "threads"}
    assert (tmp_path / "scaling.png").exists() == report.can_draw()


def test_the_parts_of_a_tiny_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = quick_run("call", tmp_path)["cells"]
    assert len(cells) == 10
    assert all(cell["call"]["median_s"] > 0 for cell in cells)
    assert "LeakyRNN, forward and backward" in capsys.readouterr().out
