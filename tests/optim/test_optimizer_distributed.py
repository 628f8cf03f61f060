"""Training in two processes (gloo, torchrun), however they share the parameters, equals training in one."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys

import optimizer_ranks
import pytest
import torch
from helpers import ROOT

from rnnkernels import ClippedNesterov

NAMED = [f"(params[{number}] of group 0, shape" for number, _, _ in optimizer_ranks.BAD.values()]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "optim" / "optimizer_ranks.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", optimizer_ranks.CASES)
@pytest.mark.parametrize("how", ["ddp", *optimizer_ranks.MESHES, *optimizer_ranks.GROUPS])
def test_two_processes_get_the_results_of_one(results, how, case):
    expected = optimizer_ranks.train(optimizer_ranks.make_model(), case, 0, 1)
    nonfinite = optimizer_ranks.CASES[case][1].get("nonfinite", "skip")
    steps, bad = optimizer_ranks.STEPS, len(optimizer_ranks.BAD)
    counts = {"skip": (steps - bad, bad), "raise": (steps - bad, 0), "apply": (steps, 0)}
    assert tuple(expected["counts"].tolist()) == counts[nonfinite]
    errors = expected.pop("errors")
    assert len(errors) == (bad if nonfinite == "raise" else 0)
    assert all(name in error for name, error in zip(NAMED, errors, strict=False))
    for rank in range(2):
        got = results[rank][how, case]
        if how in optimizer_ranks.GROUPS:  # where each process has parameters of its own
            assert len(got["errors"]) == len(errors)
            assert got["errors"] == results[1 - rank][how, case]["errors"]
            pattern = (
                r"in process [01] of process_group, the gradient of parameter \(params\[\d\] of group 0, "
            )
            assert all(re.match(pattern, error) for error in got["errors"])
        else:
            assert got["errors"] == errors
        assert list(got) == [*expected, "errors"]
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-11, atol=1e-13, equal_nan=True)


def test_the_error_names_the_process_that_has_the_gradient(results):
    errors = results[0]["all in one process", "raise"]["errors"]
    expected = optimizer_ranks.train(optimizer_ranks.make_model(), "raise", 0, 1)["errors"]
    assert errors == [f"in process 1 of process_group, {error}" for error in expected]


def test_all_processes_skip_where_the_loss_scaler_of_one_found_an_overflow(results):
    norm = math.hypot(20, 20) / 4
    for rank in range(2):
        for counts in results[rank]["loss scales"].values():
            assert counts == (0, 1, pytest.approx(norm, rel=1e-14))


def test_the_norm_spans_meshes_that_a_process_group_joins(results):
    wanted = math.sqrt(4 * 3**2 + 4 * 4**2)
    assert [results[rank]["stages"] for rank in range(2)] == pytest.approx([wanted, wanted], rel=1e-14)


def test_written_shards_are_what_the_next_step_starts_from(results):
    for rank in range(2):
        assert torch.equal(results[rank]["edits"], torch.full((50,), 0.25, dtype=torch.bfloat16))


def test_a_missing_process_group_raises_an_error_that_says_which(results):
    sharded = "must be whole, got a shard of FullyShardedDataParallel: pass the sharding group,"
    for rank in range(2):
        messages = results[rank]["refusals"]
        for when in ("constructor, False", "constructor, True", "step"):
            assert "params[0] of group 0" in messages[when]
            assert f"{sharded} process_group=model.process_group" in messages[when]
        assert messages["copy"].endswith("got 'not copied': assign optimizer.process_group again")
        assert messages["copy with a group"] == "2.000"
    assert results[0]["refusals"]["member"] is None
    assert (
        "process_group must be a torch.distributed.ProcessGroup with this process, or None, got"
        in (results[1]["refusals"]["member"])
    )


def test_a_training_with_zero_redundancy_continues_after_a_round_trip(results):
    assert all(results[rank]["zero round trip"] for rank in range(2))


def test_a_process_group_of_another_type_raises_an_error():
    param = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(
        ValueError, match=r"^process_group must be a torch\.distributed\.ProcessGroup .* 'world'"
    ):
        ClippedNesterov([param], process_group="world")
    with pytest.raises(ValueError, match="process_group belongs to the whole optimizer"):
        ClippedNesterov([{"params": [param], "process_group": "world"}])
