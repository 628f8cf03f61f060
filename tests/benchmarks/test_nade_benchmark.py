"""The benchmark of NADE: contenders agree, and a wrong one is excluded. No test asserts a time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import benchmark_helpers  # noqa: F401 - makes `benchmarks` importable
import pytest
import torch

from benchmarks import nade
from benchmarks.__main__ import main
from benchmarks.timing import processor_clock

QUICK = ["nade", "--quick", "--threads", "1"]


def test_a_quick_run_times_all_contenders_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, "--output", str(tmp_path)]) == 0
    (cell,) = json.loads((tmp_path / "nade.json").read_text())["cells"]
    assert list(cell["log_prob"]) == list(nade.LOG_PROB)
    assert list(cell["draws"]) == list(nade.DRAWS)
    assert all(x["median_s"] > 0 for what in ("log_prob", "draws") for x in cell[what].values())
    printed = capsys.readouterr().out
    medians = {name: x["median_s"] for name, x in cell["log_prob"].items()}
    line = next(line for line in printed.splitlines() if line.startswith("forward + backward"))
    ratio = medians["loop"] / medians[nade.OURS]
    assert nade.report.ratio_text(ratio) in line.split()
    assert f"NADE: {nade.report.ratio_text(ratio)} the loop in the geometric mean" in printed


@pytest.mark.parametrize("ones", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", list(nade.LOG_PROB))
def test_contenders_compute_what_the_loop_computes(name: str, ones: float) -> None:
    for sizes in ((1, 2, 1), (5, 9, 4), (30, 40, 20)):
        v, tensors = nade.make_arguments(nade.Case(*sizes, 0.5), dtype=torch.float64)
        v = torch.rand(v.shape) < ones
        found = nade.step(nade.LOG_PROB[name], v, tensors)
        for x, y in zip(found, nade.step(nade.LOG_PROB["loop"], v, tensors), strict=True):
            assert float((x - y).abs().max()) <= 1e-12 * max(1.0, float(y.abs().max()))


def test_processor_time_needs_one_thread_and_omits_sleep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nade", "--quick", "--processor-time", "--threads", "2"]) == 2
    assert capsys.readouterr().err == "error: --processor-time needs --threads 1 on the CPU\n"
    rest = processor_clock(lambda: time.sleep(0.2))
    work = processor_clock(lambda: sum(range(2_000_000)))
    assert 0 <= rest < work


def no_gradient(v, b, c, encoder, decoder):
    return nade._loop(v, b, c, encoder.detach() + 0 * encoder, decoder)


def test_a_peer_with_a_wrong_answer_is_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(nade.LOG_PROB, "wrong", no_gradient)
    assert main([*QUICK, "--output", str(tmp_path)]) == 0
    assert "left out: wrong: d W differs from the loop in float64 by " in capsys.readouterr().err
    (cell,) = json.loads((tmp_path / "nade.json").read_text())["cells"]
    assert list(cell["log_prob"]) == [name for name in nade.LOG_PROB if name != "wrong"]


@pytest.mark.parametrize(
    ("functions", "name", "wrong", "message"),
    [
        (nade.LOG_PROB, nade.OURS, no_gradient, "error: rnnkernels: d W differs from the loop"),
        (
            nade.DRAWS,
            "wrong",
            lambda _, b, *others: torch.zeros_like(b),
            "of the rows drawn are not the loop's",
        ),
    ],
)
def test_a_wrong_answer_of_ours_or_wrong_draws_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    functions: dict[str, Any], name: str, wrong: Any, message: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(functions, name, wrong)
    assert main([*QUICK, "--output", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "nade.json").exists()


def test_memory_is_measured_in_a_separate_process() -> None:
    case = nade.Case(1000, 88, 150, 0.5)
    hidden = 4 * case.rows * case.hidden
    # The loop keeps the hidden units of every visible one; rnnkernels little more than one gradient of them.
    assert nade.measured_bytes("loop", case, "cpu") > 80 * hidden
    assert nade.measured_bytes(nade.OURS, case, "cpu") < 20 * hidden
