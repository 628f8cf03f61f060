"""The benchmarks for a GPU, with the CPU as the device: peers, the run, its tables.

Only a GPU can test the capture of a CUDA graph and device events as the clock.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_helpers import BENCH, CARD, POINTS, RATES, TINY, gpu_run

import benchmarks.__main__
from benchmarks import floor, layer, loops, optimizer, recurrence, report
from benchmarks.__main__ import main
from benchmarks.check import Checker, WrongAnswerError
from benchmarks.peers import PEERS, HalfRnn, Peer, Recurrence, make_nn_rnn, make_ours, no_flashrnn
from benchmarks.problem import OURS, Cell, make_problem
from benchmarks.recurrence_report import PASSES, share
from benchmarks.timing import Bench

# ----------------------------------------------------------------------------------------- peers


def test_nn_rnn_in_float16_is_right_beside_bfloat16() -> None:
    for cell, lengths in ((TINY, None), (TINY, (7, 4, 1)), (Cell(64, 200, 8, 16), None)):
        problem = make_problem(cell, torch.bfloat16, 0.8, seed=1, lengths=lengths)
        contender: Any = HalfRnn(problem)
        Checker(problem)("half", contender)
        assert contender.forward().dtype == torch.float16


def test_the_graphed_loop_captures_each_pass_once_and_is_right() -> None:
    captured: list[Callable[[], Any]] = []

    def capture(function: Callable[[], Any]) -> Callable[[], Any]:
        captured.append(function)
        return function

    problem = make_problem(TINY, torch.float64, 0.8, seed=1)
    graphed = loops.GraphedLoop(problem, capture)
    assert len(captured) == 2
    Checker(problem)("graph", graphed)
    assert graphed.forward().shape == (7, 3, 5)


@pytest.mark.parametrize("steps", [3, 7, 16])
def test_the_compiled_loop_is_right_over_blocks_of_any_size(steps: int) -> None:
    problem = make_problem(TINY, torch.float64, 0.8, seed=1)
    Checker(problem)("compile", loops.make_compiled(problem, steps, backend="aot_eager"))


def test_flashrnn_gets_its_axes_and_is_checked_against_tanh(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a replacement for its function that has its shapes."""

    def flashrnn(pre: Any, weight: Any, bias: Any, *, function: str, dtype: str) -> tuple[Any, Any]:
        assert (function, dtype) == ("elman", "float64")
        assert (pre.shape, weight.shape, bias.shape) == ((3, 7, 1, 1, 5), (1, 1, 5, 5), (1, 1, 5))
        h, states = torch.zeros(3, 5, dtype=pre.dtype), []
        for p in pre[:, :, 0, 0].unbind(1):
            h = torch.tanh(p + bias[0, 0] + h @ weight[0, 0].t())
            states.append(h)
        output = torch.stack(states, 1)[None, :, :, None]
        return output, output[:, :, -1:]

    module = type(sys)("flashrnn.flashrnn")
    module.__dict__["flashrnn"] = flashrnn
    monkeypatch.setitem(sys.modules, "flashrnn", type(sys)("flashrnn"))
    monkeypatch.setitem(sys.modules, "flashrnn.flashrnn", module)
    assert no_flashrnn() is None
    problem = make_problem(TINY, torch.float64, 0.8, seed=1)
    contender: Any = PEERS["flash"].make(problem)
    Checker(problem)("flash", contender)
    contender.reference_loop = None
    with pytest.raises(WrongAnswerError, match="output is wrong"):
        Checker(problem)("flash", contender)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_peers_that_need_a_gpu_are_missing_without_one() -> None:
    for name in ("graph", "compile", "half"):
        assert PEERS[name].missing() == "torch finds no NVIDIA GPU"


def test_all_agree_on_a_packed_batch() -> None:
    problem = make_problem(TINY, torch.float64, 0.8, seed=1, lengths=(7, 4, 1))
    check = Checker(problem)
    assert len(problem.rows(problem.x)) == 12
    for make in (make_ours, make_nn_rnn, loops.make_loop, Recurrence):
        contender = make(problem)
        check(make.__name__, contender)
        assert contender.results().output.shape == (12, 5)


# --------------------------------------------------------------------------------------- the run


def test_a_run_has_times_and_shares_of_the_floor(tmp_path: Path) -> None:
    path = tmp_path / "recurrence.json"
    document = gpu_run(path=path, peers=("rnn", "loop", "graph"))
    assert json.loads(path.read_text())["cells"] == document["cells"]
    assert recurrence.failures(document) == []
    assert document["points_left_out"] == []
    assert [cell["point"] for cell in document["cells"]] == [str(point) for point in POINTS]
    for cell, point in zip(document["cells"], POINTS, strict=True):
        for name in PASSES:
            assert {OURS, "rnn", "loop"} <= set(cell[name]["times"])
            least = floor.step_floor(RATES, point.precision, point.rows, 5, name == "forward_backward")
            alone = cell[name]["recurrence"]["median_s"]
            assert share(document, cell, name) == pytest.approx(least["floor_s"] * 7 / alone)
    if not torch.cuda.is_available():
        assert document["skipped"].keys() == {"graph"}
        assert "torch does not use cuDNN for nn.RNN in bfloat16, float32, tf32." in recurrence.notes(document)


def test_tables_are_made_from_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, picture = tmp_path / "recurrence.json", tmp_path / "picture.png"
    document = gpu_run()
    document["device"], document["environment"]["card"] = "cuda", CARD
    report.save_json(document, path)
    assert main(["show", str(path), "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert picture.exists() == report.can_draw()
    assert max(map(len, printed.splitlines())) <= report.WIDTH
    assert printed.startswith("NVIDIA Test 1, 9 multiprocessors")
    words = " ".join(printed.split())
    assert "barrier 20, shared read 10, product 20, cluster read 100, flag 400" in words
    head = "B T I H dtype rnnkernels nn.RNN loop vs best vs loop floor"
    assert words.count(head) == 2
    assert words.index(" packed bfloat16 ") > words.index(" tf32 ")


def test_the_whole_command_with_the_cpu_as_its_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmarks.__main__, "no_gpu", lambda: None)
    monkeypatch.setattr(benchmarks.__main__, "cuda_bench", lambda quick: BENCH)
    monkeypatch.setattr(recurrence, "prepare_jax", lambda *what: None)
    monkeypatch.setattr(floor, "measure_rates", lambda *what, **more: RATES)

    def points(*options: str) -> list[str]:
        command = ["recurrence", "--device", "cuda", "--quick", "--peers", "rnn,loop"]
        assert main([*command, "--output", str(tmp_path), *options]) == 0
        cells = json.loads((tmp_path / "recurrence.json").read_text())["cells"]
        return [cell["point"] for cell in cells]

    assert points() == ["B 4, T 32, I 8, H 64, float32", "B 4, T 32, I 8, H 64, bfloat16, packed"]
    assert (tmp_path / "recurrence.png").exists() == report.can_draw()
    tiny = "B 3, T 7, I 4, H 5, "
    assert points("--grid", "3,7,4,5") == [tiny + "float32", tiny + "bfloat16"]
    assert points("--grid", "3,7,4,5", "--dtype", "bfloat16") == [tiny + "bfloat16"]
    assert main(["recurrence", "--device", "cuda", "--dtype", "float64"]) == 2
    assert "--device cuda supports the dtypes float32 and bfloat16" in capsys.readouterr().err


def test_no_point_begins_after_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each point takes 5 s by the clock."""
    now = [0.0]
    monkeypatch.setattr(recurrence, "broken_device", lambda device: now.__setitem__(0, now[0] + 5.0))
    document = gpu_run(bench=Bench(BENCH.plan, clock=lambda: now[0]), budget=10.0)
    assert len(document["cells"]) == 2
    assert document["points_left_out"] == [str(POINTS[2])]
    assert "No time for 1 points: B 3, T 7, I 4, H 5, tf32." in recurrence.notes(document)


def test_a_peer_that_takes_long_to_make_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making the loop takes 20 s by the clock, and a quarter of the budget is 30 s."""
    now = [0.0]

    def make(problem: Any) -> Any:
        now[0] += 20.0
        return loops.make_loop(problem)

    monkeypatch.setitem(PEERS, "loop", Peer("slow loop", make, packs=True))
    monkeypatch.setitem(PEERS, "long", Peer("long", make, packs=True, seconds=31.0))
    bench = Bench(BENCH.plan, clock=lambda: now[0])
    document = gpu_run(bench=bench, budget=120.0, peers=("rnn", "loop", "long"))
    assert [cell["left_out"] for cell in document["cells"]] == [["long"], ["long"], ["loop", "long"]]
    assert ["loop" in cell["forward"]["times"] for cell in document["cells"]] == [True, True, False]
    notes = recurrence.notes(document)
    assert "No time for slow loop at 1 of 3 points." in notes
    assert "No time for long at 3 of 3 points." in notes


def test_a_device_that_no_longer_answers_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "broken_device", lambda device: "the device no longer answers: why")
    document = gpu_run(peers=())
    assert len(document["cells"]) == 1
    assert len(document["points_left_out"]) == 2
    assert recurrence.failures(document) == ["the device no longer answers: why"]
    assert "Stopped: the device no longer answers: why" in recurrence.notes(document)


def test_layer_compares_networks_with_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = layer.measure_pair(layer.side_by_side(3, 2, 4, 3, 5, "cpu"), BENCH)
    assert cell["what"] == "3 networks, B 2, T 4, I 3, H 5"
    assert cell["ratio"] == pytest.approx(cell["asked"]["median_s"] / cell["plain"]["median_s"])
    monkeypatch.setattr(layer, "side_by_side", lambda *sizes: sizes)
    assert list(layer.pairs(quick=False, device="cuda")) == [(100, 32, 512, 64, 128, "cuda")]


def test_the_optimizer_rotates_through_sets_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    calls: list[int] = []

    def make_parameters(shapes: Any, device: str, seed: int) -> list[Any]:
        made.append(seed)
        return [seed]

    monkeypatch.setattr(optimizer, "make_parameters", make_parameters)

    def make(params: Any) -> Any:
        return lambda: calls.append(params[0])

    task = optimizer.rotation(make, "25 M", BENCH)
    for _ in range(3):
        task()
    assert made == [0, 1]
    assert calls == [0, 1, 0, 1, 0]  # each once, then in turn


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["recurrence", "optimizer", "nade", "layer", "gpu-report"])
def test_without_a_gpu_one_message_says_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name] if name == "gpu-report" else [name, "--device", "cuda"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: this needs an NVIDIA GPU and a torch that uses it; torch")
    assert len(printed.err.splitlines()) == 1
