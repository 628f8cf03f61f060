"""Predict the next notes of a piece, with LeakyRNN and with the same network as a plain PyTorch loop.

A leaky ReLU network reads a piece of music up to step t-1 and predicts for each of the 88 keys the
probability that it sounds at step t; the keys are independent of each other given the past. The
network is trained twice from one seed, on the same batches in the same order: with
rnnkernels.LeakyRNN, and with the loop in eager.py, both by rnnkernels.ClippedNesterov. The table at
the end has the scores on the test split, with the weights of the best validation:

    log-likelihood   sum over the 88 keys of log p(key), in nats, mean over all steps 2..T
    accuracy         expected frame-level accuracy TP / (TP + FP + FN), with the counts that draws
                     from the prediction p have in expectation: TP = sum p y, FP = sum p (1-y),
                     FN = sum (1-p) y, over the keys and steps 2..T of the whole split
    seconds          median over the epochs of training alone: forward, backward, clipping and
                     update; the two runs alternate, so other load slows both

Data: the Bach chorales of the package music21, or a file (see polyphonic_music.rolls.load) given
with --data or in the environment variable DATA. Training pieces are transposed at random by up to
--transpose keys. Exit status 1: the runs disagree; 2: no usable data or wrong arguments;
130: stopped by Ctrl-C, after the results so far.
"""

from __future__ import annotations

try:
    import math
    import os
    import signal
    import statistics
    import sys
    import time
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Sequence
    from dataclasses import dataclass, field
    from typing import NamedTuple

    import numpy as np
    import torch
    from eager import EagerLeakyRNN
    from matplotlib.figure import Figure
    from polyphonic_music import rolls
    from polyphonic_music.batches import bucket, pad
    from polyphonic_music.chorales import load_chorales
    from polyphonic_music.files import UnusableError
    from polyphonic_music.progress import Progress
    from torch import Tensor, nn
    from torch.nn.functional import binary_cross_entropy_with_logits

    from rnnkernels import ClippedNesterov, LeakyRNN
except KeyboardInterrupt:  # loading torch takes seconds
    raise SystemExit(130) from None

FIRST_UPDATES = 20
TOLERANCE = 1e-4  # relative, of the losses of the first updates; later losses may diverge


class Batch(NamedTuple):
    """Sequences side by side: input frames, the frames after them, and 1 where there is such a frame."""

    inputs: Tensor  # [T-1, B, 88]
    target: Tensor  # [T-1, B, 88]
    mask: Tensor  # [T-1, B, 1]


class Score(NamedTuple):
    log_likelihood: float
    accuracy: float


class Predictor(nn.Module):
    """Recurrence, then one logit per key with the bias `alone`, the logit of the key's frequency."""

    def __init__(self, recurrence: nn.Module, hidden: int, alone: Tensor) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.readout = nn.Linear(hidden, rolls.KEYS)
        self.readout.bias.data.copy_(alone)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.recurrence(inputs)[0])
        return logits


@dataclass
class Run:
    """One of the two trainings and its results so far."""

    label: str
    model: Predictor
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)  # per update, in nats per step
    seconds: list[float] = field(default_factory=list)  # per finished epoch
    best_valid: float = -math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)


class Interrupt:
    """Ctrl-C sets a flag that is read between updates; a second Ctrl-C ends the program at once."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def make_batches(
    pieces: Sequence[rolls.Roll], size: int, rng: np.random.Generator, transpose: int = 0
) -> list[Batch]:
    """One epoch in batches of similar length, each piece moved by -transpose..transpose keys."""
    shifts = rng.integers(-transpose, transpose + 1, len(pieces)).tolist()
    batches = []
    for chosen in bucket([len(piece) for piece in pieces], size, rng):
        padded, lengths = pad([rolls.transposed(pieces[i], shifts[i]) for i in chosen])
        frames = torch.from_numpy(padded)
        mask = torch.arange(1, len(frames)).unsqueeze(1) < torch.from_numpy(lengths)
        batches.append(Batch(frames[:-1], frames[1:], mask.unsqueeze(2).float()))
    return batches


def nats_per_step(logits: Tensor, batch: Batch) -> Tensor:
    weight, target = batch.mask, batch.target
    total = binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")
    return total / weight.sum()


def train_epoch(run: Run, batches: Sequence[Batch], interrupt: Interrupt) -> None:
    begin = time.perf_counter()
    for batch in batches:
        if interrupt.asked:
            return
        loss = nats_per_step(run.model(batch.inputs), batch)
        run.optimizer.zero_grad()
        torch.autograd.backward(loss)
        run.optimizer.step()
        run.losses.append(loss.item())
    run.seconds.append(time.perf_counter() - begin)


def score(predict: Callable[[Tensor], Tensor], batches: Sequence[Batch]) -> Score:
    """Log-likelihood and accuracy, as defined at the top of this file."""
    nats = steps = hits = either = 0.0
    with torch.no_grad():
        for batch in batches:
            logits = predict(batch.inputs)
            count = float(batch.mask.sum())
            nats += float(nats_per_step(logits, batch)) * count
            steps += count
            p, y = torch.sigmoid(logits) * batch.mask, batch.target * batch.mask
            hits += float((p * y).sum())
            either += float((p + y - p * y).sum())
    return Score(-nats / steps, hits / either)


def validate(run: Run, batches: Sequence[Batch]) -> None:
    valid = score(run.model, batches).log_likelihood
    if valid > run.best_valid:
        run.best_valid, run.best_epoch = valid, len(run.seconds)
        run.best_weights = {k: v.clone() for k, v in run.model.state_dict().items()}


def make_runs(options: Namespace, alone: Tensor) -> list[Run]:
    runs = []
    for label, kind in (("loop of plain PyTorch", EagerLeakyRNN), ("LeakyRNN", LeakyRNN)):
        torch.manual_seed(options.seed)
        recurrence = kind(rolls.KEYS, options.hidden, decay=options.decay)
        model = Predictor(recurrence, options.hidden, alone)
        optimizer = ClippedNesterov(model.parameters(), 0.1, options.momentum, options.clip)
        runs.append(Run(label, model, optimizer))
    return runs


def train(runs: list[Run], data: rolls.Rolls, options: Namespace, interrupt: Interrupt) -> None:
    """Train both runs side by side, until the epochs or seconds are used up or Ctrl-C is pressed.

    The learning rate follows a half cosine to 0, and rises to --lr over the first five epochs,
    because rounding errors grow within 20 updates if training starts at the full rate.
    """
    rng = np.random.default_rng(options.seed)
    valid = make_batches(data.valid, options.batch, np.random.default_rng(0))
    progress, begin, last = Progress(), time.perf_counter(), 0.0
    for epoch in range(options.epochs):
        elapsed = time.perf_counter() - begin
        if interrupt.asked or elapsed + last > options.seconds:
            break
        cosine = 0.5 + 0.5 * math.cos(math.pi * epoch / options.epochs)
        batches = make_batches(data.train, options.batch, rng, options.transpose)
        for run in runs if epoch % 2 else reversed(runs):
            run.optimizer.param_groups[0]["lr"] = options.lr * cosine * min(1, (epoch + 1) / 5)
            train_epoch(run, batches, interrupt)
            if not interrupt.asked:
                validate(run, valid)
        last = time.perf_counter() - begin - elapsed
        if not interrupt.asked:
            done = max((epoch + 1) / options.epochs, (elapsed + last) / options.seconds)
            text = f"epoch {epoch + 1}/{options.epochs}, best validation {runs[1].best_valid:.3f}"
            progress.show(min(1.0, done), text)
    progress.close()
    if (epochs := len(runs[0].seconds)) < options.epochs and not interrupt.asked:
        print(f"stopped after {epochs} epochs, because {options.seconds:g} s are used up")


def differences(runs: Sequence[Run]) -> list[float]:
    """The relative difference of the two runs' losses at every common update."""
    return [abs(a - b) / abs(a) for a, b in zip(runs[0].losses, runs[1].losses, strict=False)]


def largest(values: list[float]) -> float:
    return float(np.max(values, initial=0.0))  # unlike max(), it returns NaN if there is one


def recurrence_seconds(runs: Sequence[Run], batch: Batch, repeats: int = 9) -> list[float]:
    """Median seconds of the recurrent layer alone on one batch, forward and backward, alternating."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, seconds in zip(runs, taken, strict=True):
            begin = time.perf_counter()
            run.model.recurrence(batch.inputs)[0].sum().backward()
            seconds.append(time.perf_counter() - begin)
            run.optimizer.zero_grad()
    return [statistics.median(seconds) for seconds in taken]


def row(label: str, *cells: str) -> str:
    return f"{label:24}{cells[0]:>15}{cells[1]:>11}{cells[2]:>19}{cells[3]:>9}"


def cells(result: Score) -> tuple[str, str]:
    return f"{result.log_likelihood:.3f}", f"{100 * result.accuracy:.1f} %"


def table(runs: Sequence[Run], baseline: Score, test: Sequence[Batch]) -> list[str]:
    """The lines of the table; a dash stands for a missing value."""
    lines = [
        row("test split", "log-likelihood", "accuracy", "seconds per epoch", "speed"),
        row("keys alone, no network", *cells(baseline), "-", "-"),
    ]
    for run in runs:
        results, times = ("-", "-"), ("-", "-")
        if run.best_weights:
            run.model.load_state_dict(run.best_weights)
            results = cells(score(run.model, test))
        if run.seconds and runs[0].seconds:
            loop, own = (statistics.median(r.seconds) for r in (runs[0], run))
            times = (f"{own:.4f}", f"{loop / own:.1f} x")
        lines.append(row(run.label, *results, *times))
    if not (apart := differences(runs)):
        return lines
    best = " and ".join(str(run.best_epoch) for run in runs)
    return [
        *lines,
        "",
        f"{len(apart)} updates per run; best validation after epoch {best}",
        f"the losses of the two runs differ by at most {largest(apart[:FIRST_UPDATES]):.1e}"
        f" (relative) over the first {len(apart[:FIRST_UPDATES])} updates,"
        f" {largest(apart):.1e} over all",
    ]


def draw(runs: Sequence[Run], baseline: float, title: str, path: str) -> str:
    """Plot loss curves, their differences, and seconds per epoch. Return a line about the file."""
    colors = ("#e08e45", "#1f4e79")
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplot_mosaic("lt;at", width_ratios=(2, 1), height_ratios=(3, 1))
    loss, apart, time_bars = (panels[name] for name in "lat")
    apart.sharex(loss)
    window = max(1, len(runs[0].losses) // max(1, len(runs[0].seconds)))
    for run, color, width in zip(runs, colors, (5, 1.5), strict=True):
        smooth = np.convolve(run.losses, np.full(window, 1 / window), mode="valid")
        steps = window + np.arange(len(smooth))
        loss.plot(steps, smooth, color=color, linewidth=width, label=run.label)
    loss.axhline(baseline, color="0.45", linestyle=":", label="keys alone, no network (test)")
    loss.set(title="Training loss, mean over an epoch", ylabel="nats per step")
    loss.tick_params(labelbottom=False)
    loss.legend(frameon=False, loc="upper right")
    gap = [value or math.nan for value in differences(runs)]  # the logarithm of zero is not finite
    apart.semilogy(range(1, len(gap) + 1), gap, ".", color="0.35", markersize=2)
    apart.hlines(TOLERANCE, 0, FIRST_UPDATES, color=colors[0], linewidth=3)
    note = f"update (bar: tolerance over the first {FIRST_UPDATES})"
    apart.set(xlabel=note, ylabel="losses' relative\ndifference", ylim=(1e-9, 1))
    medians = [1000 * statistics.median(run.seconds) if run.seconds else 0.0 for run in runs]
    bars = time_bars.bar([run.label for run in runs], medians, color=colors, width=0.6)
    time_bars.bar_label(bars, fmt="%.0f ms", padding=3)
    if min(medians) > 0:
        faster = f"{medians[0] / medians[1]:.1f} times\nfaster"
        time_bars.text(1, 0.5 * medians[0], faster, ha="center", fontsize=13, color=colors[1])
    time_bars.set(title="Training time an epoch", ylabel="milliseconds")
    time_bars.margins(y=0.1)
    for axes in (loss, apart, time_bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        return f"no picture: {path} cannot be written ({error})"
    return f"picture: {path}"


def parse(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", default=os.environ.get("DATA"), help=".mat, .pickle, .pkl, .json")
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--seconds", type=float, default=130.0, help="stop training after this")
    parser.add_argument("--hidden", type=int, default=200, help="units")
    parser.add_argument("--batch", type=int, default=16, help="sequences per update")
    parser.add_argument("--decay", type=float, default=0.5, help="d of h_t = d h_{t-1} + (1 - d) f(...)")
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--momentum", type=float, default=0.95)
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    parser.add_argument("--transpose", type=int, default=5, choices=range(12))
    parser.add_argument("--limit", type=int, help="number of sequences used of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--picture", default="demo.png", help="file of the picture")
    options = parser.parse_args(arguments)
    for name in ("epochs", "seconds", "hidden", "batch", "limit", "threads"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} must be more than 0, got {value}")
    if not 0 <= options.decay < 1:
        parser.error(f"--decay must be in [0, 1), got {options.decay}")
    return options


def load(options: Namespace) -> rolls.Rolls:
    progress, text = Progress(), "reading the scores of music21, the first time only"
    if options.data:
        data = rolls.load(options.data)
    else:
        data = load_chorales(progress=lambda i, of: progress.show(i / of, text))
    progress.close()
    cut = [part[: options.limit] for part in (data.train, data.valid, data.test)]
    return rolls.Rolls(data.name, data.note, *cut)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    interrupt = Interrupt()
    torch.set_num_threads(options.threads)
    try:
        data = load(options)
    except UnusableError as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 2
    title = f"{data.name}, {options.hidden} leaky ReLU units, decay {options.decay:g}"
    print(f"{title}, batch {options.batch}, {options.threads} threads\n{data.note}", flush=True)
    alone = torch.logit(torch.from_numpy(rolls.key_frequency(data.train)).float())
    runs = make_runs(options, alone)
    train(runs, data, options, interrupt)
    test = make_batches(data.test, options.batch, np.random.default_rng(0))
    baseline = score(lambda inputs: alone.expand(inputs.shape), test)
    print("stopped by Ctrl-C; results so far:\n" if interrupt.asked else "")
    print("\n".join(table(runs, baseline, test)))
    if not interrupt.asked:
        loop, fused = recurrence_seconds(runs, test[0])
        print(
            f"the recurrent layer alone on {list(test[0].inputs.shape)}, forward and backward:"
            f" loop {1000 * loop:.2f} ms, LeakyRNN {1000 * fused:.2f} ms, {loop / fused:.1f} x"
        )
    if all(run.losses for run in runs):
        print(draw(runs, -baseline.log_likelihood, title, options.picture))
    if interrupt.asked:
        return 130
    if not largest(differences(runs)[:FIRST_UPDATES]) <= TOLERANCE:
        print(f"demo.py: the two runs differ by more than {TOLERANCE:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
