"""Training in two processes (gloo, torchrun), with DDP and fully_shard, equals training in one process."""

from __future__ import annotations

import os
import subprocess
import sys

import optimizer_ranks
import pytest
import torch
from helpers import ROOT

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
@pytest.mark.parametrize("how", ["ddp", *optimizer_ranks.MESHES])
def test_two_processes_get_the_results_of_one(results, how, case):
    expected = optimizer_ranks.train(optimizer_ranks.make_model(), case, 0, 1)
    nonfinite = optimizer_ranks.CASES[case][1].get("nonfinite", "skip")
    steps, bad = optimizer_ranks.STEPS, len(optimizer_ranks.BAD)
    counts = {"skip": (steps - bad, bad), "raise": (steps - bad, 0), "apply": (steps, 0)}
    assert tuple(expected["counts"].tolist()) == counts[nonfinite]
    assert len(expected["errors"]) == (bad if nonfinite == "raise" else 0)
    assert all(name in error for name, error in zip(NAMED, expected["errors"], strict=False))
    for rank in range(2):
        got = results[rank][how, case]
        assert list(got) == list(expected)
        assert got.pop("errors") == expected["errors"]
        for name, value in got.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-13, equal_nan=True)
