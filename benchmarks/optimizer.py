"""`python -m benchmarks optimizer`: clipping and update in one call, against torch's two.

Each model is a list of tensors with gradients. Every contender takes the same three steps first and
must end where torch's plain form ends; then all are timed interleaved (timing.py), along with a copy
of a large tensor, whose rate the bytes that a step has to move are compared with. With `--device cuda`
the clock is the device's (timing.py), and several sets of parameters and gradients take turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import options, report
from .bench import Bench, cpu_bench, cuda_bench
from .card import no_card
from .machine import OtherLoad, environment
from .timing import Plan, Rotation, Task, measure

MODELS: dict[str, list[tuple[int, ...]]] = {
    "RNN, I 88, H 200": [(200, 88), (200, 200), (200,), (200,)],
    "RNN, I 88, H 1024": [(1024, 88), (1024, 1024), (1024,), (1024,)],
    "60 of 64 x 64": [(64, 64)] * 60,
    "25 M": [(5000, 5000)],
}
QUICK = ("RNN, I 88, H 200", "60 of 64 x 64")
MAX_NORM, LR, MOMENTUM = 1.0, 1e-4, 0.9
COPY = "copy"
COPY_NUMBERS = 25_000_000
TOLERANCE = 1e-5  # of the parameters' change over the first steps, relative

Step = Callable[[], object]


def _clipped_by_torch(params: list[Tensor], optimizer: torch.optim.Optimizer, foreach: bool) -> Step:
    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=foreach)
        optimizer.step()

    return step


def _sgd(params: list[Tensor], **how: bool) -> Step:
    sgd = torch.optim.SGD(params, LR, MOMENTUM, nesterov=True, **how)
    return _clipped_by_torch(params, sgd, how != {"foreach": False})


def _adamw(params: list[Tensor], **how: bool) -> Step:
    adamw = torch.optim.AdamW(params, LR, **how)
    return _clipped_by_torch(params, adamw, how != {"foreach": False})


def _ours(rule: str, params: list[Tensor], **options: Any) -> Step:
    import rnnkernels  # not before __main__ has settled which one

    optimizer: Any = getattr(rnnkernels, rule)(params, LR, max_norm=MAX_NORM, **options)
    step: Step = optimizer.step
    return step


# For each rule ours, and torch's: the plain form last, which the others are checked against.
RULES: dict[str, dict[str, Callable[[list[Tensor]], Step]]] = {
    "ClippedNesterov": {
        "ours": lambda p: _ours("ClippedNesterov", p, momentum=MOMENTUM),
        "fused": lambda p: _sgd(p, fused=True),
        "foreach": lambda p: _sgd(p, foreach=True),
        "plain": lambda p: _sgd(p, foreach=False),
    },
    "ClippedAdamW": {
        "ours": lambda p: _ours("ClippedAdamW", p),
        "fused": lambda p: _adamw(p, fused=True),
        "foreach": lambda p: _adamw(p, foreach=True),
        "plain": lambda p: _adamw(p, foreach=False),
    },
}
# Bytes a float32 parameter: the gradient for the norm; gradient, parameter and states for the update.
BYTES = {"ClippedNesterov": 4 + 4 + 8 + 8, "ClippedAdamW": 4 + 4 + 8 + 16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def run(arguments: argparse.Namespace) -> int:
    if arguments.device == "cuda" and (why := no_card()):
        print(f"error: {why}", file=sys.stderr)
        return 2

    def measure_on_device(quick: bool, plan: Plan) -> report.Document:
        return measure_models(quick, cuda_bench(quick) if arguments.device == "cuda" else cpu_bench(plan))

    return options.run(arguments, measure_on_device, rows, Plan())


def make_parameters(shapes: Sequence[tuple[int, ...]], device: str = "cpu", seed: int = 0) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    params = []
    for shape in shapes:
        param = torch.nn.Parameter(torch.randn(shape, generator=generator, device=device))
        param.grad = torch.randn(shape, generator=generator, device=device)
        params.append(param)
    return params


def check(rule: str, shapes: Sequence[tuple[int, ...]], device: str = "cpu") -> None:
    """Three steps by every contender; raises ValueError where one goes elsewhere."""
    moved = {}
    for name, make in RULES[rule].items():
        params = make_parameters(shapes, device)
        begin = [p.detach().clone() for p in params]
        step = make(params)
        for seed in range(3):
            for i, p in enumerate(params):
                generator = torch.Generator(device).manual_seed(seed * len(params) + i)
                p.grad = torch.randn(p.shape, generator=generator, device=device)
            step()
        moved[name] = torch.cat([(p.detach() - b).flatten() for p, b in zip(params, begin, strict=True)])
    expected = moved["plain"]
    for name, value in moved.items():
        # Where a step is small beside the parameter, its rounding is large beside the step.
        error = float((value - expected).abs().max())
        if not error <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ValueError(f"{rule}: {name} differs from torch's plain form by {error:.2g}")


def rotating(make: Callable[[list[Tensor]], Step], name: str, bench: Bench) -> Task:
    """A contender's step, on parameters and gradients of its own for each set; each set had a step."""
    steps = [make(make_parameters(MODELS[name], bench.device, seed)) for seed in range(bench.input_sets)]
    for step in steps:
        step()
    return Rotation(steps) if len(steps) > 1 else steps[0]


def measure_models(quick: bool, bench: Bench) -> report.Document:
    names, plan = QUICK if quick else tuple(MODELS), bench.plan
    source = torch.randn(COPY_NUMBERS, device=bench.device)
    target = torch.empty_like(source)
    cells = []
    for rule, contenders in RULES.items():
        for name in names:
            print(f"{rule}, {name}", file=sys.stderr, flush=True)
            check(rule, MODELS[name], bench.device)
            tasks: dict[str, Task] = {
                label: rotating(make, name, bench) for label, make in contenders.items()
            }
            tasks[COPY] = lambda: target.copy_(source)
            load = OtherLoad()
            timings = measure(tasks, plan, stopwatch=bench.new_stopwatch())
            numbers = sum(torch.Size(shape).numel() for shape in MODELS[name])
            best = min((t.median, label) for label, t in timings.items() if label not in ("ours", COPY))
            copied = 8 * COPY_NUMBERS / min(timings[COPY].times)
            cells.append(
                {
                    "rule": rule,
                    "model": name,
                    "numbers": numbers,
                    "contenders": {label: t.figures() for label, t in timings.items()},
                    "best_peer": best[1],
                    "ratio": best[0] / timings["ours"].median,
                    "copy_bytes_per_s": copied,
                    "share_of_copy": BYTES[rule] * numbers / timings["ours"].median / copied,
                    "cores_of_others": load.cores(),
                }
            )
    means = {r: report.geometric_mean(c["ratio"] for c in cells if c["rule"] == r) for r in RULES}
    return {
        "benchmark": "optimizer",
        "device": bench.device,
        "environment": environment(torch.get_num_threads(), bench.device),
        "settings": {"max_norm": MAX_NORM, "rounds": plan.rounds, "seconds": plan.seconds},
        "cells": cells,
        "summary": {"geometric_mean_ratio": means},
        "notes": [", ".join(f"{rule}: {mean:.2f}x in the geometric mean" for rule, mean in means.items())],
    }


def rows(document: report.Document) -> list[list[str]]:
    """Microseconds, the ratio to the best of torch's forms, and the share of the copy's rate."""
    lines = [["rule", "model", "ours us", "fused", "foreach", "plain", "against the best", "of copy rate"]]
    for cell in document["cells"]:
        times = cell["contenders"]
        lines.append(
            [
                cell["rule"],
                cell["model"],
                *(f"{1e6 * times[name]['median_s']:.0f}" for name in ("ours", "fused", "foreach", "plain")),
                f"{cell['ratio']:.2f}x",
                # A model that fits into a cache moves nothing through memory.
                f"{100 * cell['share_of_copy']:.0f} %" if cell["numbers"] > 10_000_000 else "in cache",
            ]
        )
    return lines
