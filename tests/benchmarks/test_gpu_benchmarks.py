"""The benchmarks for a GPU, as far as a machine without one can run them: peers, the run, its table.

Here the CPU is the device. What only a card can do is the capture of a CUDA graph, and events as the clock.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import floor, gpu_peers, gpu_recurrence, gpu_table, optimizer, report
from benchmarks.__main__ import main
from benchmarks.bench import Bench, cpu_bench
from benchmarks.check import Checker, WrongAnswerError
from benchmarks.gpu_plan import Costs, Point
from benchmarks.loops import from_loop, make_loop
from benchmarks.peers import PEERS, HalfRnn, Peer, Recurrence, make_nn_rnn, make_ours
from benchmarks.problem import OURS, Cell, Problem, make_problem
from benchmarks.timing import Plan, Rotation

TINY = Cell(3, 7, 4, 5)
PLAN = Plan(seconds=0.1, rounds=1, least_rounds=1, turn=0.0, rest=0.0, warmup=0.0)
RATES = floor.Rates(
    copy_bytes_per_s=3e12,
    flops_per_s={"bfloat16": 8e14, "float32": 5e13, "tf32": 4e14},
    multiprocessors=128,
    latencies={
        "barrier_s": 2e-8,
        "shared_read_s": 1e-8,
        "product_s": 2e-8,
        "cluster_read_s": 1e-7,
        "flag_s": 4e-7,
    },
)
CARD = {"name": "NVIDIA Test", "capability": [9, 0], "multiprocessors": 128, "cuda": "13.0", "cudnn": 91000}


# ----------------------------------------------------------------------------------------- peers


def test_nn_rnn_in_float16_is_right_beside_bfloat16() -> None:
    for cell, lengths in ((TINY, None), (TINY, (7, 4, 1)), (Cell(64, 200, 8, 16), None)):
        problem = make_problem(cell, torch.bfloat16, 0.8, seed=1, lengths=lengths)
        contender = HalfRnn(problem)
        Checker(problem)("half", contender)
        assert contender.forward().dtype == torch.float16


def test_the_graphed_loop_captures_each_pass_once_and_is_right() -> None:
    captured: list[Callable[[], Any]] = []

    def capture(function: Callable[[], Any]) -> Callable[[], Any]:
        captured.append(function)
        return function

    problem = make_problem(TINY, torch.float64, 0.8, seed=1)
    graphed = gpu_peers.GraphedLoop(problem, capture)
    assert len(captured) == 2
    Checker(problem)("graph", graphed)
    assert graphed.forward().shape == (7, 3, 5)


@pytest.mark.parametrize("steps", [3, 7, 16])
def test_the_compiled_loop_is_right_over_blocks_of_any_size(steps: int) -> None:
    problem = make_problem(TINY, torch.float64, 0.8, seed=1)
    Checker(problem)("compile", gpu_peers.make_compiled(problem, steps, backend="aot_eager"))


def test_flashrnn_is_given_its_axes_and_checked_against_tanh(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for its function, which has its shapes."""

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
    module.flashrnn = flashrnn
    monkeypatch.setitem(sys.modules, "flashrnn", type(sys)("flashrnn"))
    monkeypatch.setitem(sys.modules, "flashrnn.flashrnn", module)
    assert gpu_peers.no_flashrnn() is None
    problem = make_problem(TINY, torch.float64, 0.8, seed=1)
    contender = PEERS["flash"].make(problem)
    Checker(problem)("flash", contender)
    contender.reference_loop = None
    with pytest.raises(WrongAnswerError, match="output is wrong"):
        Checker(problem)("flash", contender)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_peers_of_a_gpu_say_that_there_is_none() -> None:
    for name in ("graph", "compile", "half"):
        assert PEERS[name].missing() == "torch finds no NVIDIA GPU"


def test_all_agree_on_a_packed_batch() -> None:
    problem = make_problem(TINY, torch.float64, 0.8, seed=1, lengths=(7, 4, 1))
    check = Checker(problem)
    assert len(problem.rows(problem.x)) == 12
    for make in (make_ours, make_nn_rnn, make_loop, Recurrence):
        contender = make(problem)
        check(make.__name__, contender)
        assert contender.results().output.shape == (12, 5)


# --------------------------------------------------------------------------------------- the run


def tiny_points() -> list[Point]:
    return [Point(TINY, "float32"), Point(TINY, "bfloat16", packed=True), Point(TINY, "tf32")]


def tiny_run(
    path: Path | None = None, peers: tuple[str, ...] = ("rnn", "loop", "graph"), **changes: Any
) -> dict[str, Any]:
    settings = {"points": tiny_points(), "bench": cpu_bench(PLAN, 2), "budget": 1e6} | changes
    return gpu_recurrence.measure_grid(
        settings["points"], peers, RATES, settings["bench"], settings["budget"], 0, None, path
    )


def test_a_run_has_times_ratios_and_shares(tmp_path: Path) -> None:
    path = tmp_path / "recurrence.json"
    document = tiny_run(path)
    assert json.loads(path.read_text())["cells"] == document["cells"]
    assert gpu_recurrence.failures(document) == [] and document["points_left_out"] == []
    assert document["skipped"].keys() == ({"graph"} if not torch.cuda.is_available() else set())
    assert [cell["point"] for cell in document["cells"]] == [str(point) for point in tiny_points()]
    for cell, point in zip(document["cells"], tiny_points(), strict=True):
        for name in report.PASSES:
            figures = cell[name]
            assert {OURS, "rnn", "loop"} <= set(figures["times"])
            ours, alone = figures["times"][OURS]["median_s"], figures["recurrence"]["median_s"]
            assert figures["peer_over_ours"]["rnn"] == pytest.approx(
                figures["times"]["rnn"]["median_s"] / ours
            )
            least = floor.step_floor(RATES, point.precision, point.rows, 5, name == "forward_backward")
            assert figures["share_of_floor"] == pytest.approx(least["floor_s"] * 7 / alone)


def test_tables_are_made_from_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recurrence.json"
    document = tiny_run(path) | {"networks": {"networks": 9, "H": 5, "B": 3, "ratio": 1.5}}
    document["device"], document["environment"]["card"] = "cuda", CARD
    report.save_json(document, path)
    picture = tmp_path / "picture.png"
    drawn = ["--picture", str(picture)] if report.can_draw() else []
    assert main(["show", str(path), *drawn]) == 0
    printed = capsys.readouterr().out
    assert picture.exists() == report.can_draw()
    assert max(map(len, printed.splitlines())) <= report.WIDTH
    assert printed.startswith("NVIDIA Test, 128 multiprocessors")
    assert printed.splitlines()[-1].startswith(
        "9 networks of H 5, B 3 under vmap, forward + backward: 1.50 times"
    )
    assert "barrier 20, shared read 10, product 20, cluster read 100, flag 400" in " ".join(printed.split())
    heads = [line.split() for line in printed.splitlines() if "alone" in line.split()]
    assert heads == [["H", "B", "T", "dtype", "ours", "rnn", "loop", "best", "alone", "floor", "share"]] * 2
    assert main(["show", str(path), "--markdown"]) == 0
    assert "| H | B | T | dtype |" in capsys.readouterr().out


def test_the_whole_command_with_the_cpu_as_its_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_recurrence, "no_card", lambda: None)
    monkeypatch.setattr(gpu_recurrence, "cuda_bench", lambda quick: cpu_bench(PLAN, 2))
    monkeypatch.setattr(gpu_recurrence, "prepare_jax", lambda *what: None)
    monkeypatch.setattr(floor, "measure_rates", lambda *what, **more: RATES)
    monkeypatch.setattr(gpu_recurrence, "QUICK_NETWORKS", (3, 2, 4, 3, 5))
    command = ["recurrence", "--device", "cuda", "--quick", "--output", str(tmp_path), "--peers", "rnn,loop"]
    assert main(command) == 0
    assert "3 networks of H 5, B 2" in capsys.readouterr().out.splitlines()[-1]
    document = json.loads((tmp_path / "recurrence.json").read_text())
    assert [cell["packed"] for cell in document["cells"]] == [False, True]
    assert (tmp_path / "recurrence.png").exists() == report.can_draw()
    assert main([*command, "--grid", "3,7,4,5", "--dtype", "bfloat16"]) == 0
    assert [c["point"] for c in json.loads((tmp_path / "recurrence.json").read_text())["cells"]] == [
        "B 3, T 7, I 4, H 5, bfloat16"
    ]
    monkeypatch.setattr(gpu_recurrence, "make_ours", failing)
    assert main([*command, "--grid", "3,7,4,5"]) == 1
    assert "error: B 3, T 7, I 4, H 5, float32: NotImplementedError" in capsys.readouterr().err
    assert main([*command, "--dtype", "float64"]) == 2


def failing(problem: Problem) -> Any:
    raise NotImplementedError("not for these sizes\nand more")


def wrong(problem: Problem) -> Any:
    return from_loop(problem, lambda x, *weights: 1.1 * gpu_peers.leaky_loop(x, *weights))


def test_a_peer_that_fails_is_left_out_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "bad", Peer("bad", failing))
    monkeypatch.setitem(PEERS, "wrong", Peer("wrong one", wrong))
    document = tiny_run(peers=("bad", "wrong", "rnn"), points=tiny_points()[:1])
    (cell,) = document["cells"]
    assert cell["failed"]["bad"] == "NotImplementedError: not for these sizes"
    assert "output is wrong" in cell["failed"]["wrong"]
    assert set(cell["forward"]["times"]) == {OURS, "rnn"}
    assert gpu_recurrence.failures(document) == []
    notes = gpu_table.notes(document)
    assert any(note.startswith("Failed: wrong one at B 3") for note in notes)
    if not torch.cuda.is_available():
        assert "This torch gives no float32, bfloat16, tf32 to cuDNN: there rnn is torch's own." in notes


def test_whose_gradients_alone_are_wrong_is_timed_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(problem: Problem) -> Any:
        """The last step is cut out of the gradient."""

        def loop(*arguments: Any) -> torch.Tensor:
            output = gpu_peers.leaky_loop(*arguments)
            return torch.cat((output[:-1], output[-1:].detach()))

        return from_loop(problem, loop)

    monkeypatch.setitem(PEERS, "cut", Peer("cut", cut))
    document = tiny_run(peers=("cut", "rnn"), points=tiny_points()[:1])
    (cell,) = document["cells"]
    assert "gradient of weight_" in cell["failed"]["cut"]
    assert set(cell["forward"]["times"]) == {OURS, "cut", "rnn"}
    assert set(cell["forward_backward"]["times"]) == {OURS, "rnn"}


def test_where_ours_fails_the_peers_are_measured_and_the_run_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_recurrence, "make_ours", failing)
    document = tiny_run(peers=("rnn",), points=tiny_points()[:1])
    assert gpu_recurrence.failures(document) == [
        "B 3, T 7, I 4, H 5, float32: NotImplementedError: not for these sizes"
    ]
    (cell,) = document["cells"]
    assert set(cell["forward"]["times"]) == {"rnn"} and cell["forward"]["best_peer"] is None
    assert "float32" in gpu_table.table(document)


def test_a_run_leaves_out_what_its_budget_does_not_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by what was estimated, so that the third point has no time."""
    now = [0.0]
    monkeypatch.setattr(gpu_recurrence, "Costs", FixedCosts)
    monkeypatch.setattr(gpu_recurrence, "broken_device", lambda device: now.__setitem__(0, now[0] + 5.0))
    bench = Bench("cpu", cpu_bench(PLAN).new_stopwatch, PLAN, 1, clock=lambda: now[0])
    document = tiny_run(peers=("rnn", "loop"), bench=bench, budget=12.0)
    assert [cell["left_out"] for cell in document["cells"]] == [["loop"], ["loop"]]
    assert document["points_left_out"] == [str(tiny_points()[2])]
    notes = " ".join(gpu_table.notes(document))
    assert "No time for loop at 2 of 2 points: H 5 B 3 float32, H 5 B 3 bfloat16." in notes
    assert "No time for 1 points: B 3, T 7, I 4, H 5, tf32." in notes


class FixedCosts(Costs):
    def __call__(self, point: Point, who: str) -> float:
        return 10.0 if who == "loop" else 1.0


def test_a_device_that_no_longer_answers_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_recurrence, "broken_device", lambda device: "the device no longer answers: why")
    document = tiny_run(peers=())
    assert len(document["cells"]) == 1 and len(document["points_left_out"]) == 2
    assert gpu_recurrence.failures(document) == ["the device no longer answers: why"]
    assert "Stopped: the device no longer answers: why" in gpu_table.notes(document)


def test_networks_side_by_side() -> None:
    found = gpu_recurrence.measure_networks((3, 2, 4, 3, 5), cpu_bench(PLAN))
    assert found["ratio"] == pytest.approx(found["together"]["median_s"] / found["one"]["median_s"])
    failed = gpu_recurrence.measure_networks((3, 2, 4, 3, 0), cpu_bench(PLAN))
    assert failed["failed"].startswith("3 networks under vmap: ValueError")
    assert gpu_table.networks_lines({"networks": failed}) == [f"failed: {failed['failed']}"]


def test_the_optimizer_rotates_through_sets_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    make = optimizer.make_parameters

    def recorded(shapes: Any, device: str = "cpu", seed: int = 0) -> Any:
        seeds.append(seed)
        return make(shapes, device, seed)

    monkeypatch.setattr(optimizer, "make_parameters", recorded)
    ours = optimizer.RULES["ClippedNesterov"]["ours"]
    task = optimizer.rotating(ours, "RNN, I 88, H 200", cpu_bench(PLAN, 3))
    assert isinstance(task, Rotation) and seeds == [0, 1, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("name", ["recurrence", "optimizer", "nade"])
def test_without_a_gpu_a_sentence_says_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--device", "cuda"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: this needs an NVIDIA GPU and a torch that uses it; here is torch")
    assert len(said.err.splitlines()) == 1
