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
from benchmark_helpers import CARD, PLAN, POINTS, RATES, TINY, gpu_run

import benchmarks.__main__
from benchmarks import floor, loops, optimizer, recurrence, report
from benchmarks.__main__ import main
from benchmarks.budget import Costs
from benchmarks.check import Checker, WrongAnswerError
from benchmarks.peers import PEERS, HalfRnn, Peer, Recurrence, make_nn_rnn, make_ours, no_flashrnn
from benchmarks.problem import OURS, Cell, Point, Problem, make_problem
from benchmarks.recurrence_report import PASSES
from benchmarks.timing import Bench, Rotation

BENCH = Bench(plan=PLAN)


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


def test_a_run_has_times_ratios_and_shares(tmp_path: Path) -> None:
    path = tmp_path / "recurrence.json"
    document = gpu_run(path=path, peers=("rnn", "loop", "graph"))
    assert json.loads(path.read_text())["cells"] == document["cells"]
    assert recurrence.failures(document) == []
    assert document["points_left_out"] == []
    assert document["skipped"].keys() == ({"graph"} if not torch.cuda.is_available() else set())
    assert [cell["point"] for cell in document["cells"]] == [str(point) for point in POINTS]
    for cell, point in zip(document["cells"], POINTS, strict=True):
        for name in PASSES:
            figures = cell[name]
            assert {OURS, "rnn", "loop"} <= set(figures["times"])
            medians = {who: figures["times"][who]["median_s"] for who in (OURS, "rnn")}
            assert figures["peer_over_ours"]["rnn"] == pytest.approx(medians["rnn"] / medians[OURS])
            least = floor.step_floor(RATES, point.precision, point.rows, 5, name == "forward_backward")
            alone = figures["recurrence"]["median_s"]
            assert figures["share_of_floor"] == pytest.approx(least["floor_s"] * 7 / alone)


def test_tables_are_made_from_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recurrence.json"
    document = gpu_run() | {"networks": {"networks": 9, "H": 5, "B": 3, "ratio": 1.5}}
    document["device"], document["environment"]["card"] = "cuda", CARD
    report.save_json(document, path)
    picture = tmp_path / "picture.png"
    drawn = ["--picture", str(picture)] if report.can_draw() else []
    assert main(["show", str(path), *drawn]) == 0
    printed = capsys.readouterr().out
    assert picture.exists() == report.can_draw()
    assert max(map(len, printed.splitlines())) <= report.WIDTH
    assert printed.startswith("NVIDIA Test 1, 9 multiprocessors")
    words = " ".join(printed.split())
    assert "9 networks of H 5, B 3 under vmap, forward + backward: 1.50 times the time of one" in words
    assert "barrier 20, shared read 10, product 20, cluster read 100, flag 400" in words
    heads = [line.split() for line in printed.splitlines() if "floor" in line.split() and "H" in line.split()]
    assert heads == [["H", "B", "T", "dtype", "ours", "rnn", "loop", "best", "alone", "floor", "share"]] * 2
    assert main(["show", str(path), "--markdown"]) == 0
    head = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in head.split("|")[1:5]] == ["H", "B", "T", "dtype"]


def test_the_whole_command_with_the_cpu_as_its_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmarks.__main__, "no_gpu", lambda: None)
    monkeypatch.setattr(benchmarks.__main__, "cuda_bench", lambda quick: Bench(plan=PLAN, input_sets=2))
    monkeypatch.setattr(recurrence, "prepare_jax", lambda *what: None)
    monkeypatch.setattr(floor, "measure_rates", lambda *what, **more: RATES)
    monkeypatch.setattr(recurrence, "QUICK_NETWORKS", (3, 2, 4, 3, 5))
    command = ["recurrence", "--device", "cuda", "--quick", "--output", str(tmp_path), "--peers", "rnn,loop"]
    assert main(command) == 0
    assert "3 networks of H 5, B 2" in " ".join(capsys.readouterr().out.split())
    document = json.loads((tmp_path / "recurrence.json").read_text())
    assert [cell["packed"] for cell in document["cells"]] == [False, True]
    assert (tmp_path / "recurrence.png").exists() == report.can_draw()
    assert main([*command, "--grid", "3,7,4,5", "--dtype", "bfloat16"]) == 0
    assert [c["point"] for c in json.loads((tmp_path / "recurrence.json").read_text())["cells"]] == [
        "B 3, T 7, I 4, H 5, bfloat16"
    ]
    monkeypatch.setattr(recurrence, "make_ours", failing)
    assert main([*command, "--grid", "3,7,4,5"]) == 1
    assert "error: B 3, T 7, I 4, H 5, float32: NotImplementedError" in capsys.readouterr().err
    assert main([*command, "--dtype", "float64"]) == 2


def failing(problem: Problem) -> Any:
    raise NotImplementedError("not for these sizes\nand more")


def wrong(problem: Problem) -> Any:
    return loops.from_loop(problem, lambda *arguments: 1.1 * loops.leaky_loop(*arguments))


def without_last_gradient(problem: Problem) -> Any:
    """The last step is missing in the gradient."""

    def loop(*arguments: Any) -> torch.Tensor:
        output = loops.leaky_loop(*arguments)
        return torch.cat((output[:-1], output[-1:].detach()))

    return loops.from_loop(problem, loop)


def test_a_peer_that_fails_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "bad", Peer("bad", failing))
    monkeypatch.setitem(PEERS, "wrong", Peer("wrong one", wrong))
    document = gpu_run(peers=("bad", "wrong", "rnn"), points=POINTS[:1])
    (cell,) = document["cells"]
    assert cell["failed"]["bad"] == "NotImplementedError: not for these sizes"
    assert "output is wrong" in cell["failed"]["wrong"]
    assert set(cell["forward"]["times"]) == {OURS, "rnn"}
    assert recurrence.failures(document) == []
    notes = recurrence.notes(document)
    assert any(note.startswith("Failed: wrong one at B 3") for note in notes)
    if not torch.cuda.is_available():
        assert "torch does not use cuDNN for nn.RNN in bfloat16, float32, tf32." in notes


def test_a_contender_with_wrong_gradients_only_is_timed_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "cut", Peer("cut", without_last_gradient))
    document = gpu_run(peers=("cut", "rnn"), points=POINTS[:1])
    (cell,) = document["cells"]
    assert "gradient of weight_" in cell["failed"]["cut"]
    assert set(cell["forward"]["times"]) == {OURS, "cut", "rnn"}
    assert set(cell["forward_backward"]["times"]) == {OURS, "rnn"}


def test_if_ours_fails_the_peers_are_measured_and_the_run_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "make_ours", failing)
    document = gpu_run(peers=("rnn",), points=POINTS[:1])
    assert recurrence.failures(document) == [
        "B 3, T 7, I 4, H 5, float32: NotImplementedError: not for these sizes"
    ]
    (cell,) = document["cells"]
    assert set(cell["forward"]["times"]) == {"rnn"}
    assert cell["forward"]["best_peer"] is None
    assert "float32" in report.text(document)


def test_a_run_leaves_out_what_its_budget_does_not_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances by what was estimated, so that the third point has no time."""
    now = [0.0]
    monkeypatch.setattr(recurrence, "Costs", FixedCosts)
    monkeypatch.setattr(recurrence, "broken_device", lambda device: now.__setitem__(0, now[0] + 5.0))
    document = gpu_run(bench=Bench(plan=PLAN, clock=lambda: now[0]), budget=12.0)
    assert [cell["left_out"] for cell in document["cells"]] == [["loop"], ["loop"]]
    assert document["points_left_out"] == [str(POINTS[2])]
    notes = " ".join(recurrence.notes(document))
    assert "No time for loop at 2 of 2 points: H 5 B 3 float32, H 5 B 3 bfloat16." in notes
    assert "No time for 1 points: B 3, T 7, I 4, H 5, tf32." in notes


class FixedCosts(Costs):
    def __call__(self, point: Point, who: str) -> float:
        return 10.0 if who == "loop" else 1.0


def test_a_device_that_no_longer_answers_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "broken_device", lambda device: "the device no longer answers: why")
    document = gpu_run(peers=())
    assert len(document["cells"]) == 1
    assert len(document["points_left_out"]) == 2
    assert recurrence.failures(document) == ["the device no longer answers: why"]
    assert "Stopped: the device no longer answers: why" in recurrence.notes(document)


def test_networks_side_by_side() -> None:
    found = recurrence.measure_networks((3, 2, 4, 3, 5), BENCH)
    assert found["ratio"] == pytest.approx(found["together"]["median_s"] / found["one"]["median_s"])
    failed = recurrence.measure_networks((3, 2, 4, 3, 0), BENCH)
    assert failed["failed"].startswith("3 networks under vmap: ValueError")
    assert recurrence.networks_notes({"networks": failed}) == [f"Failed: {failed['failed']}"]


def test_the_optimizer_rotates_through_sets_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    make = optimizer.make_parameters

    def recorded(shapes: Any, device: str = "cpu", seed: int = 0) -> Any:
        seeds.append(seed)
        return make(shapes, device, seed)

    monkeypatch.setattr(optimizer, "make_parameters", recorded)
    ours = optimizer.RULES["ClippedNesterov"]["ours"]
    task = optimizer.rotation(ours, "RNN, I 88, H 200", Bench(plan=PLAN, input_sets=3))
    assert isinstance(task, Rotation)
    assert seeds == [0, 1, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["recurrence", "optimizer", "nade", "gpu-report"])
def test_without_a_gpu_one_message_says_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name] if name == "gpu-report" else [name, "--device", "cuda"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: this needs an NVIDIA GPU and a torch that uses it; torch")
    assert len(said.err.splitlines()) == 1
