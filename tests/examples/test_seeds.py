"""The example that trains many seeds at once: the same numbers as one after the other."""

from __future__ import annotations

import copy

import pytest
import seeds
import torch
from helpers import distance


def networks():
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        made.append(seeds.Memory(8))
    return made


def test_seeds_together_end_where_each_ends_alone():
    together, alone = networks(), networks()
    torch.manual_seed(10)
    curve = seeds.train(together, 5, 12, 4, 1e-2)
    for i, network in enumerate(alone):
        torch.manual_seed(10)
        assert distance(curve[:, i], seeds.train([network], 5, 12, 4, 1e-2)[:, 0]) < 1e-5
        for a, b in zip(together[i].parameters(), network.parameters(), strict=True):
            assert distance(a, b) < 1e-4
    begun = networks()[0]
    assert distance(together[0].readout.weight, begun.readout.weight) > 1e-3


def test_training_learns_the_task():
    (network,) = networks()[:1]
    torch.manual_seed(0)
    curve = seeds.train([copy.deepcopy(network)], 150, 12, 32, 1e-2)
    assert curve[-20:].mean() < 0.7 * curve[:5].mean()


def test_the_whole_example_runs(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "seeds.png"
    arguments = ["--seeds", "2", "--updates", "10", "--hidden", "8", "--picture", str(picture)]
    assert seeds.main(arguments) == 0
    assert "2 seeds together" in capsys.readouterr().out
    assert picture.stat().st_size > 1000
