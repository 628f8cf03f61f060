"""The demo: the plain loop, scores, batches, whole runs."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from itertools import pairwise
from pathlib import Path
from typing import Any

import demo
import numpy as np
import pytest
import torch
from eager import EagerLeakyRNN
from polyphonic_music import rolls
from polyphonic_music.batches import bucket, pad
from torch import nn

from rnnkernels import LeakyRNN


def made_rolls(seed: int, lengths: list[int]) -> list[rolls.Roll]:
    """Pieces with something to learn: a chord that rises step by step and wraps around."""
    rng = np.random.default_rng(seed)
    pieces = []
    for length in lengths:
        roll = np.zeros((length, 88), np.uint8)
        for t, begin in enumerate(rng.integers(0, 12) + np.arange(length)):
            roll[t, 24 + begin % 12] = roll[t, 40 + begin % 12] = 1
        pieces.append(roll)
    return pieces


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    content = {}
    for seed, split in enumerate(("train", "valid", "test")):
        pieces = made_rolls(seed, [9, 12, 5, 17, 30, 8, 14, 11, 10, 21, 7, 2, 3])
        content[split] = [[(np.flatnonzero(s) + 21).tolist() for s in piece] for piece in pieces]
    path = tmp_path / "made.json"
    path.write_text(json.dumps(content))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(demo.__file__), *map(str, arguments)]


def table_of(output: str) -> dict[str, list[str]]:
    """The rows of the table by their names."""
    names = ("test split", "keys alone, no network", "loop of plain PyTorch", "LeakyRNN")
    rows = {}
    for line in output.splitlines():
        for name in names:
            if line.startswith(name + " "):
                rows[name] = re.split(r"\s{2,}", line[len(name) :].strip())
    assert list(rows) == list(names), output
    assert all(len(row) == 4 for row in rows.values()), output
    return rows


def test_the_loop_without_decay_is_torch_nn_rnn() -> None:
    for nonlinearity, bias in (("relu", True), ("tanh", False)):
        torch.manual_seed(3)
        theirs = nn.RNN(5, 7, nonlinearity=nonlinearity, bias=bias)
        torch.manual_seed(3)
        ours = EagerLeakyRNN(5, 7, nonlinearity, bias)
        for (name, a), (other, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert name == other
            assert torch.equal(a, b)
        x, hx = torch.randn(6, 3, 5), torch.randn(1, 3, 7)
        for got, expected in zip(ours(x, hx), theirs(x, hx), strict=True):
            torch.testing.assert_close(got, expected)
        torch.testing.assert_close(ours(x)[0], theirs(x)[0])


@pytest.mark.parametrize("form", ["rate", "current"])
def test_the_loop_computes_its_equation(form: str) -> None:
    net = EagerLeakyRNN(2, 3, "tanh", decay=0.75, form=form)
    x, h, drive = torch.randn(4, 1, 2), torch.randn(1, 1, 3), torch.randn(4, 1, 3)
    states, last = net(x, h, drive=drive)
    assert net.bias_ih_l0 is not None
    assert net.bias_hh_l0 is not None
    state = h[0, 0]
    for t in range(4):
        p = net.weight_ih_l0 @ x[t, 0] + net.bias_ih_l0 + net.bias_hh_l0 + drive[t, 0]
        if form == "rate":
            new = torch.tanh(p + net.weight_hh_l0 @ state)
        else:
            new = p + net.weight_hh_l0 @ torch.tanh(state)
        state = 0.75 * state + 0.25 * new
        torch.testing.assert_close(states[t, 0], state)
    assert torch.equal(last[0], states[-1])


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"form": "x"}, {"nonlinearity": "x"}])
def test_the_loop_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EagerLeakyRNN(2, 3, **wrong)


def test_the_loop_and_the_package_agree() -> None:
    nets: list[nn.Module] = []
    for kind in (EagerLeakyRNN, LeakyRNN):
        torch.manual_seed(5)
        nets.append(kind(88, 20, decay=0.5))
    x, target = torch.rand(30, 4, 88), torch.rand(30, 4, 20)
    for net in nets:
        (net(x)[0] * target).sum().backward()
    torch.testing.assert_close(nets[0](x), nets[1](x))
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_score_is_the_one_that_the_file_header_defines() -> None:
    pieces = made_rolls(0, [5, 9, 2])
    logits = torch.randn(88)
    p = torch.sigmoid(logits).double().numpy()
    nats, true_positive, false_positive, false_negative = [], 0.0, 0.0, 0.0
    for piece in pieces:
        for y in piece[1:]:
            nats.append(sum(math.log(q if on else 1 - q) for q, on in zip(p, y, strict=True)))
            true_positive += sum(p * y)
            false_positive += sum(p * (1 - y))
            false_negative += sum((1 - p) * y)
    batches = demo.make_batches(pieces, 2, np.random.default_rng(0))
    got = demo.score(lambda inputs: logits.expand(inputs.shape), batches)
    assert got.log_likelihood == pytest.approx(np.mean(nats), rel=1e-5)
    either = true_positive + false_positive + false_negative
    assert got.accuracy == pytest.approx(true_positive / either, rel=1e-5)


def test_batches_pair_each_step_with_the_next() -> None:
    pieces = made_rolls(1, [6, 9, 7, 2, 40])
    seen = []
    for batch in demo.make_batches(pieces, 2, np.random.default_rng(0)):
        assert torch.equal(batch.inputs[1:], batch.target[:-1])
        lengths = batch.mask[..., 0].sum(dim=0).int().tolist()
        for i, length in enumerate(lengths):
            assert batch.mask[:length, i].all()
            assert not batch.mask[length:, i].any()
            whole = torch.cat([batch.inputs[:1, i], batch.target[:length, i]])
            seen.append(whole.numpy().astype(np.uint8).tobytes())
    assert sorted(seen) == sorted(piece.tobytes() for piece in pieces)


def test_batches_are_transposed_as_a_whole() -> None:
    (piece,) = made_rolls(1, [6])
    shifts = set()
    for seed in range(60):
        (batch,) = demo.make_batches([piece], 1, np.random.default_rng(seed), transpose=2)
        moved = torch.cat([batch.inputs[:1, 0], batch.target[:, 0]]).numpy()
        shift = int(np.flatnonzero(moved[0])[0] - np.flatnonzero(piece[0])[0])
        np.testing.assert_array_equal(moved, np.roll(piece, shift, axis=1))
        shifts.add(shift)
    assert shifts == {-2, -1, 0, 1, 2}


def test_buckets_hold_each_sequence_once_and_similar_lengths() -> None:
    lengths = [int(n) for n in np.random.default_rng(1).integers(2, 400, 101)]
    batches = bucket(lengths, 16, np.random.default_rng(2))
    assert sorted(i for batch in batches for i in batch) == list(range(101))
    assert sorted(map(len, batches)) == [5] + [16] * 6
    spans = sorted((min(b), max(b)) for b in ([lengths[i] for i in batch] for batch in batches))
    for (_, longest), (shortest, _) in pairwise(spans):
        assert shortest >= longest - 8
    assert batches == bucket(lengths, 16, np.random.default_rng(2))
    assert batches != bucket(lengths, 16, np.random.default_rng(3))


def test_pad() -> None:
    first, second = np.zeros((1, 88), np.uint8), np.zeros((2, 88), np.uint8)
    first[0, 39] = second[0, 40] = second[1, 41:43] = 1
    frames, lengths = pad([first, second])
    assert frames.shape == (2, 2, 88)
    assert frames.dtype == np.float32
    assert lengths.tolist() == [1, 2]
    assert lengths.dtype == np.int64
    ones = [[0, 0, 39], [0, 1, 40], [1, 1, 41], [1, 1, 42]]
    assert np.argwhere(frames).tolist() == ones


def test_transposed_stays_on_the_keyboard() -> None:
    roll = np.zeros((2, 88), np.uint8)
    roll[0, [2, 85]] = 1
    assert np.argwhere(rolls.transposed(roll, 2)).tolist() == [[0, 4], [0, 87]]
    assert np.argwhere(rolls.transposed(roll, -2)).tolist() == [[0, 0], [0, 83]]
    for shift in (3, -3):
        np.testing.assert_array_equal(rolls.transposed(roll, shift), roll)


def test_both_runs_begin_alike() -> None:
    options = Namespace(seed=4, hidden=10, decay=0.5, momentum=0.9, clip=1.0)
    alone = torch.full((88,), -2.0)
    loop, fused = demo.make_runs(options, alone)
    for (name, a), b in zip(loop.model.named_parameters(), fused.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    silence = torch.zeros(1, 1, 88)
    assert isinstance(loop.model.recurrence, EagerLeakyRNN)
    assert isinstance(fused.model.recurrence, LeakyRNN)
    torch.testing.assert_close(loop.model(silence), fused.model(silence))
    assert torch.equal(loop.model.readout.bias, alone)


def test_differences_and_a_nan() -> None:
    options = Namespace(seed=4, hidden=10, decay=0.5, momentum=0.9, clip=1.0)
    runs = demo.make_runs(options, torch.full((88,), 0.1))
    runs[0].losses, runs[1].losses = [2.0, 4.0, 8.0], [2.0, 5.0]
    assert demo.differences(runs) == [0.0, 0.25]
    assert demo.largest([]) == 0.0
    assert demo.largest([0.0, 0.25]) == 0.25
    assert math.isnan(demo.largest([0.5, math.nan, 0.25]))


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plain = demo.Progress()
    for i in range(1, 101):
        plain.show(i / 100, "working")
    plain.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines] == [f"{10 * n:3d} %" for n in range(1, 11)]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((50, 20)))
    bar = demo.Progress()
    for i in range(101):
        bar.show(i / 100, "working " * 20)
    bar.close()
    shown = capsys.readouterr().out
    assert "\n" not in shown
    assert shown.endswith("\r")
    assert "█" in shown
    assert "100 %" in shown
    assert all(len(part) < 50 for part in shown.split("\r"))


def test_a_short_run(data_file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    small = ("--hidden", 16, "--limit", 12, "--epochs", 30, "--batch", 4, "--threads", 1)
    done = subprocess.run(
        command(*small, "--picture", picture),
        env={**os.environ, "DATA": str(data_file)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout
    assert "13/13/13 train/valid/test sequences" in done.stdout
    rows = table_of(done.stdout)
    assert rows["test split"] == ["log-likelihood", "accuracy", "seconds per epoch", "speed"]
    alone = float(rows["keys alone, no network"][0])
    loop, fused = rows["loop of plain PyTorch"], rows["LeakyRNN"]
    assert float(loop[0]) > alone + 1
    assert loop[3] == "1.0 x"
    assert float(fused[0]) == pytest.approx(float(loop[0]), abs=0.02)
    assert float(fused[2]) > 0
    assert float(fused[3].split()[0]) > 0
    found = re.search(r"at most (\S+) \(relative\) over the first 20 updates, (\S+) over", done.stdout)
    assert found
    assert float(found[1]) <= 1e-4
    assert "90 updates per run" in done.stdout
    assert "the recurrent layer alone on" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_leaves_the_table(data_file: Path, tmp_path: Path) -> None:
    endless = ("--threads", 1, "--hidden", 16, "--epochs", 10**6, "--seconds", 5)
    process = subprocess.Popen(
        command("--data", data_file, *endless, "--picture", tmp_path / "a.png"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    seen = ""
    while " 10 % " not in seen and (line := process.stdout.readline()):
        seen += line
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - begin < 30
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "stopped by Ctrl-C" in output
    rows = table_of(output)
    assert float(rows["LeakyRNN"][0]) < 0
    assert float(rows["loop of plain PyTorch"][2]) > 0


def test_ctrl_c_before_the_first_update(data_file: Path, tmp_path: Path) -> None:
    """In this process, so that Ctrl-C comes at a known moment."""
    before = signal.getsignal(signal.SIGINT)
    try:
        interrupt = demo.Interrupt()
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    data = rolls.load(data_file)
    options = Namespace(seed=4, hidden=10, decay=0.5, momentum=0.9, clip=1.0, batch=4, epochs=3, seconds=9.0)
    runs = demo.make_runs(options, torch.full((88,), 0.1))
    demo.train(runs, data, options, interrupt)
    test = demo.make_batches(data.test, 4, np.random.default_rng(0))
    rows = table_of("\n".join(demo.table(runs, demo.Score(-9.0, 0.5), test)))
    assert rows["keys alone, no network"] == ["-9.000", "50.0 %", "-", "-"]
    assert rows["LeakyRNN"] == rows["loop of plain PyTorch"] == ["-", "-", "-", "-"]


def test_wrong_data_and_wrong_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "Interrupt", lambda: None)  # leaves the handler of the tests
    path = tmp_path / "wrong.pickle"
    path.write_bytes(b"cos\nsystem\n(S'touch made'\ntR.")
    assert demo.main(["--data", str(path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith(f"demo.py: {path}: asks for 'os.system'")
    for wrong in (["--epochs", "0"], ["--decay", "1"], ["--hidden", "-3"], ["--seconds", "nan"]):
        with pytest.raises(SystemExit) as caught:
            demo.parse(wrong)
        assert caught.value.code == 2


def test_disagreeing_runs_are_an_error(
    data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(EagerLeakyRNN):
        """A decay that is larger than requested."""

        def __init__(self, inputs: int, hidden: int, *, decay: float) -> None:
            super().__init__(inputs, hidden, decay=decay + 0.1)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(demo, "LeakyRNN", Wrong)
    small = ["--hidden", "8", "--epochs", "1", "--limit", "3", "--threads", "1"]
    files = ["--data", str(data_file), "--picture", str(tmp_path / "a.png")]
    try:
        assert demo.main([*files, *small]) == 1
    finally:
        signal.signal(signal.SIGINT, before)
