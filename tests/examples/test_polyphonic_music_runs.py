"""Recipes, batches, training and scores of the study, on synthetic rolls."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from polyphonic_music import recipes, training
from polyphonic_music.baselines import keys_alone
from polyphonic_music.batches import make_batch, pieces, training_batches, whole_batches
from polyphonic_music.model import Predictor
from polyphonic_music.recipes import (
    MODELS,
    TECHNIQUES,
    Range,
    Settings,
    draw,
    place,
    ranges_above,
    ranges_of,
)
from polyphonic_music.rolls import Roll, Rolls, key_frequency
from polyphonic_music.sampling import sample_piece
from polyphonic_music.scores import Sampling, Scale, log_likelihood, score_test
from polyphonic_music.training import Job, Trainer
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_packed_sequence

SCALE = Scale(Sampling(40, 4, 20), Sampling(60, 4, 30), samples=3, gibbs_steps=3)
SMALL = Settings(hidden=12, output_hidden=8, batch=4, steps=10, gibbs_steps=2)


def scales(seed: int, lengths: list[int]) -> list[Roll]:
    """Two voices that climb a scale, so the past determines the next frame."""
    rng = np.random.default_rng(seed)
    rolls = []
    for length in lengths:
        roll = np.zeros((length, 88), np.uint8)
        steps = np.arange(length) + rng.integers(12)
        for voice in (20, 39):
            roll[np.arange(length), voice + steps % 12] = 1
        rolls.append(roll)
    return rolls


@pytest.fixture(scope="module")
def data() -> Rolls:
    return Rolls("scales", "made", scales(0, [30, 14, 2, 23, 9, 31]), scales(1, [15, 22]), scales(2, [18, 3]))


def job(model: str = "RNN", updates: int = 60, **settings: object) -> Job:
    given: dict[str, Any] = {
        "lr": 1.0,
        "clip": 1.0,
        "slowest": 0.5,
        "nonlinearity": "relu",
        "momentum": 0.9,
        **settings,
    }
    made = replace(SMALL, **given)
    return Job("scales", model, "+CLRM", made, 0, updates, True, SCALE)


def test_a_rung_adds_one_technique_to_the_rung_below():
    names = [set(ranges_of(technique)) for technique in TECHNIQUES]
    for below, above in pairwise(names):
        assert below < above
    assert Settings().clip is None
    assert Settings().slowest is None
    assert Settings().momentum == 0


def test_rungs_share_their_draws():
    for trial in range(4):
        drawn = [draw(ranges_of(technique), trial, SMALL) for technique in TECHNIQUES]
        for name in recipes.SHARED:
            assert len({getattr(settings, name) for settings in drawn}) == 1
        assert drawn[-1].clip == drawn[1].clip is not None


def test_a_rung_starts_from_the_rung_below():
    below = replace(SMALL, lr=2.0, radius=0.7, dropout=0.4)
    for trial in range(6):
        drawn = draw(ranges_above("SGD", below, "+C"), trial, below)
        assert drawn.clip is not None
        assert 1 <= drawn.lr <= 10
        assert drawn == replace(below, clip=drawn.clip, lr=drawn.lr)
    assert set(ranges_above("+C", below, "+CLR")) == {"slowest", "nonlinearity", "l1", "lr"}


def test_changes_replace_and_add_ranges_but_add_no_higher_technique():
    changes = {"clip": Range(1, 1), "dropout": Range(choices=(0.3,))}
    assert set(ranges_of("SGD", changes)) == {"lr", "dropout"}
    assert (
        ranges_of("+C", changes)["clip"] == ranges_above("SGD", SMALL, "+C", changes)["clip"] == Range(1, 1)
    )
    assert draw(ranges_of("+C", changes), 1, SMALL).dropout == 0.3
    assert set(ranges_above("SGD", SMALL, "+C", changes)) == {"clip", "lr"}


def test_draws_spread_over_the_range():
    for name in ("lr", "clip", "momentum"):
        found = sorted(place(name, trial) for trial in range(16))
        assert found[0] >= 0
        assert found[-1] < 1
        assert max(np.diff([*found, found[0] + 1])) < 0.2
    lr, clip = ([place(name, trial) for trial in range(64)] for name in ("lr", "clip"))
    assert abs(np.corrcoef(lr, clip)[0, 1]) < 0.3


def test_every_setting_has_a_prime_of_its_own():
    assert len(set(recipes.PRIMES)) == len(recipes.PRIMES) >= len(recipes.NAMES)


def test_ranges():
    assert Range(0.1, 10, log=True).at(0.5) == pytest.approx(1)
    assert Range(1, 3).at(0.25) == 1.5
    assert [Range(choices=("a", "b")).at(x) for x in (0, 0.49, 0.5, 0.99)] == ["a", "a", "b", "b"]


@pytest.mark.parametrize("length", [2, 10, 11, 12, 35])
def test_pieces_have_every_step_as_a_target_once(length):
    roll = np.arange(length * 88).reshape(length, 88)
    for seed in range(20):
        cut = pieces(roll, 10, np.random.default_rng(seed))
        assert all(2 <= len(piece) <= 11 for piece in cut)
        np.testing.assert_array_equal(np.concatenate([piece[1:] for piece in cut]), roll[1:])
        np.testing.assert_array_equal(np.concatenate([piece[:-1] for piece in cut]), roll[:-1])


def test_targets_are_the_frames_after_the_inputs(data):
    batch = make_batch(data.train)
    inputs, lengths = pad_packed_sequence(batch.inputs)
    targets, _ = pad_packed_sequence(batch.inputs._replace(data=batch.targets))
    for i, roll in enumerate(data.train):
        assert lengths[i] == len(roll) - 1
        np.testing.assert_array_equal(inputs[: lengths[i], i], roll[:-1])
        np.testing.assert_array_equal(targets[: lengths[i], i], roll[1:])


def test_batches_hold_every_step(data):
    steps = sum(len(roll) - 1 for roll in data.train)
    found = list(training_batches(data.train, SMALL, np.random.default_rng(0)))
    assert sum(len(batch.targets) for batch in found) == steps
    assert max(int(batch.inputs.batch_sizes[0]) for batch in found) == SMALL.batch
    assert sum(len(batch.targets) for batch in whole_batches(data.train)) == steps


def test_whole_batches_are_bounded(data, monkeypatch):
    monkeypatch.setattr("polyphonic_music.batches.MOST_ROWS", 50)
    found = whole_batches(data.train)
    assert len(found) > 2
    assert all(len(batch.targets) <= 50 for batch in found)


def test_log_likelihood_is_the_mean_over_all_steps(data):
    model = Predictor("RNN", SMALL, key_frequency(data.train)).eval()
    nats = steps = 0.0
    for roll in data.test:
        frames = torch.from_numpy(roll).float()
        logits = model.output.visible_bias(model.rnn(frames[:-1])[0])
        nats -= float(binary_cross_entropy_with_logits(logits, frames[1:], reduction="sum").detach())
        steps += len(roll) - 1
    found = log_likelihood(model, whole_batches(data.test), SCALE.tested)
    assert found.interval is None
    assert found.mean == pytest.approx(nats / steps, rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_training_beats_the_keys_alone(data, name):
    result = Trainer(job(name, updates=120), data).run()
    assert result["updates"] <= 120
    assert result["best_epoch"] >= 1
    assert result["test"] > keys_alone(data) + 2
    assert 0 < result["accuracy"] <= 1
    assert 0 < result["active"] < 1
    assert 0 < result["gradient"] < 1
    assert (result["interval"] is None) == (name != "RNN-RBM")
    assert len(result["curve"]["epoch"]) == len(result["curve"]["valid"]) == len(result["curve"]["train"])
    assert max(result["curve"]["valid"]) == result["valid"]


@pytest.mark.parametrize("name", MODELS)
def test_a_run_that_was_killed_ends_with_the_same_bits(data, tmp_path, monkeypatch, name):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    made = job(name, updates=40, dropout=0.2, transpose=2, l1=0.1)
    whole = Trainer(made, data).run()
    path = tmp_path / "run.checkpoint"

    def kill(state):
        if state.epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(made, data, path).run(kill)
    again = Trainer(made, data, path)
    assert again.state.epoch == 4
    torch.manual_seed(99)
    resumed = again.run()
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}


def test_a_run_that_was_killed_while_it_was_scored_ends_with_the_same_bits(data, tmp_path, monkeypatch):
    """The sparsity of an RBM's gradient depends on draws after the last epoch."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(Trainer, "_sparsity", lambda trainer: {"gradient": float(torch.rand(1))})
    made, path = job("RNN-RBM", updates=20), tmp_path / "run.checkpoint"
    whole = Trainer(made, data, path).run()
    again = Trainer(made, data, path)
    assert again.state.ended
    assert {**again.run(), "seconds": 0} == {**whole, "seconds": 0}


@pytest.mark.parametrize("damage", ["cut", "other job"])
def test_a_checkpoint_that_does_not_fit_is_ignored(data, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    path = tmp_path / "run.checkpoint"
    Trainer(job(updates=10), data, path).run()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    fresh = Trainer(job(updates=10 if damage == "cut" else 11), data, path)
    assert fresh.state.epoch == 0


def test_a_run_that_diverges_ends(data):
    settings = replace(SMALL, lr=1e30, nonlinearity="relu")
    result = Trainer(Job("scales", "RNN", "SGD", settings, 0, 500, True, SCALE), data).run()
    assert result["valid"] is None
    assert "test" not in result
    assert result["updates"] < 500


def test_a_run_without_progress_ends_early(data, monkeypatch):
    monkeypatch.setattr(training, "PATIENCE", 3)
    settings = replace(SMALL, lr=0.0)
    result = Trainer(Job("scales", "RNN", "SGD", settings, 0, 5000, True, SCALE), data).run()
    assert result["updates"] < 5000
    assert len(result["curve"]["epoch"]) == 4


def test_the_learning_rate_rises_and_falls(data):
    trainer = Trainer(job(updates=100), data)
    (batch,) = whole_batches(data.train)
    rates = []
    for _ in range(100):
        trainer._update(batch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[0] < 0.1 * max(rates)
    assert rates[-1] < 0.01 * max(rates)
    assert max(rates) == pytest.approx(1.0 * (1 - 0.9), rel=0.02)
    assert np.argmax(rates) in range(3, 8)


def test_update_fractions_are_drawn_between_the_slowest_and_one():
    decay = Predictor("RNN", replace(SMALL, slowest=0.2, hidden=500), np.full(88, 0.1)).rnn.decay
    assert 0.7 < float(decay.max()) <= 0.8
    assert float(decay.min()) < 0.02
    assert Predictor("RNN", SMALL, np.full(88, 0.1)).rnn.decay == 0


def test_the_recurrent_weights_have_their_radius():
    torch.manual_seed(0)
    model = Predictor("RNN", replace(SMALL, hidden=400, radius=0.7), np.full(88, 0.1))
    weight = model.rnn.weight_hh_l0.detach()
    assert float(torch.linalg.eigvals(weight).abs().max()) == pytest.approx(0.7, rel=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_a_sampled_piece_continues_its_beginning(data, name):
    model = Predictor(name, SMALL, key_frequency(data.train)).eval()
    beginning = data.test[0][:4]
    piece = sample_piece(model, beginning, 20, torch.Generator().manual_seed(1))
    assert piece.shape == (20, 88)
    assert piece.dtype == np.uint8
    assert set(np.unique(piece)) == {0, 1}
    np.testing.assert_array_equal(piece[:4], beginning)
    again = sample_piece(model, beginning, 20, torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(piece, again)
    with pytest.raises(ValueError, match="beginning must have 1 to 3 steps, got 4"):
        sample_piece(model, beginning, 3, torch.Generator())


def test_a_trained_network_samples_chords_of_the_training_split(data):
    trainer = Trainer(job("RNN-NADE", updates=400, hidden=30, lr=3.0), data)
    trainer.run()
    piece = sample_piece(trainer.model.eval(), data.train[0][:5], 30, torch.Generator().manual_seed(0))
    real = scales(0, [40])[0]
    chords = {row.tobytes() for row in real}
    known = np.mean([row.tobytes() in chords for row in piece])
    assert known > 0.8


def test_scores_do_not_depend_on_earlier_draws(data):
    model = Predictor("RNN-RBM", SMALL, key_frequency(data.train)).eval()
    first = score_test(model, data.test, SCALE)
    torch.rand(7)
    assert score_test(model, data.test, SCALE) == first
    assert first["interval"][0] < first["test"] < first["interval"][1]
    assert math.isfinite(first["accuracy"])
