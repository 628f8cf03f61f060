"""`python -m benchmarks optimizer`: clipping and update in one call, compared with torch's two.

Each model is a list of tensors with gradients. Every contender takes the same three steps first and must
end where torch's plain form ends. Then all are timed interleaved (timing.py), along with a copy of a large
tensor, whose rate is compared with the bytes that a step has to move."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import rnnkernels

from . import report
from .check import WrongAnswerError
from .timing import Bench, Task, TimingPlan

PLAN = TimingPlan()
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
TOLERANCE = 1e-5  # relative to the parameters' change over the first steps

Make = Callable[[list[Tensor]], Task]


def _torch(kind: Callable[..., torch.optim.Optimizer], settings: dict[str, Any], **form: bool) -> Make:
    def make(params: list[Tensor]) -> Task:
        optimizer = kind(params, LR, **settings, **form)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=form != {"foreach": False})
            optimizer.step()

        return step

    return make


def _rule(ours: Callable[..., Any], our_settings: dict[str, Any], *torchs: Any) -> dict[str, Make]:
    """The contenders of a rule. The last one, torch's plain form, is what the others are checked against."""
    return {
        "ours": lambda params: ours(params, LR, max_norm=MAX_NORM, **our_settings).step,
        "fused": _torch(*torchs, fused=True),
        "foreach": _torch(*torchs, foreach=True),
        "plain": _torch(*torchs, foreach=False),
    }


SGD = {"momentum": MOMENTUM, "nesterov": True}
RULES = {
    "ClippedNesterov": _rule(rnnkernels.ClippedNesterov, {"momentum": MOMENTUM}, torch.optim.SGD, SGD),
    "ClippedAdamW": _rule(rnnkernels.ClippedAdamW, {}, torch.optim.AdamW, {}),
}
# Bytes per float32 parameter: the gradient for the norm; gradient, parameter and states for the update.
BYTES = {"ClippedNesterov": 4 + 4 + 8 + 8, "ClippedAdamW": 4 + 4 + 8 + 16}


def make_parameters(shapes: Sequence[tuple[int, ...]], device: str = "cpu", seed: int = 0) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    params: list[Tensor] = []
    for shape in shapes:
        param = torch.nn.Parameter(torch.randn(shape, generator=generator, device=device))
        param.grad = torch.randn(shape, generator=generator, device=device)
        params.append(param)
    return params


def check(rule: str, shapes: Sequence[tuple[int, ...]], device: str = "cpu") -> None:
    """Raise WrongAnswerError unless three steps of every contender end at the same parameters."""
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
        # The parameters' rounding limits the error of small steps.
        error = float((value - expected).abs().max())
        if not error <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise WrongAnswerError(f"{rule}: {name} differs from torch's plain form by {error:.2g}")


def measure(arguments: argparse.Namespace, bench: Bench) -> report.Document:
    source = torch.randn(COPY_NUMBERS, device=bench.device)
    target = torch.empty_like(source)

    def measure_model(item: tuple[str, str]) -> report.Document:
        rule, model = item
        check(rule, MODELS[model], bench.device)
        tasks = {name: rotation(make, model, bench) for name, make in RULES[rule].items()}
        tasks[COPY] = lambda: target.copy_(source)
        tasks[COPY]()
        timings = bench.measure(tasks)
        numbers = sum(torch.Size(shape).numel() for shape in MODELS[model])
        best, name = min((t.median, name) for name, t in timings.items() if name not in ("ours", COPY))
        ours, copied = timings["ours"].median, 8 * COPY_NUMBERS / min(timings[COPY].times)
        return {
            "rule": rule,
            "model": model,
            "numbers": numbers,
            "contenders": {name: t.figures() for name, t in timings.items()},
            "best_peer": name,
            "ratio": best / ours,
            "copy_bytes_per_s": copied,
            "share_of_copy": BYTES[rule] * numbers / ours / copied,
        }

    items = [(rule, model) for rule in RULES for model in (QUICK if arguments.quick else MODELS)]
    cells = report.measure_cells(items, measure_model)
    return report.document("optimizer", bench, cells, {"max_norm": MAX_NORM})


def rotation(make: Make, model: str, bench: Bench) -> Task:
    """A contender's step, with parameters and gradients of its own for each input set."""
    return bench.rotation(lambda seed: make(make_parameters(MODELS[model], bench.device, seed)))


def notes(document: report.Document) -> list[str]:
    cells = document["cells"]
    means = {
        rule: report.geometric_mean(cell["ratio"] for cell in cells if cell["rule"] == rule)
        for rule in dict.fromkeys(cell["rule"] for cell in cells)
    }
    return [
        ", ".join(f"{rule}: {report.ratio_text(mean)} in the geometric mean" for rule, mean in means.items())
    ]


def tables(document: report.Document) -> list[report.Table]:
    """Microseconds, the ratio to the best of torch's forms, and the share of the copy's rate."""
    names = ("ours", "fused", "foreach", "plain")
    rows = [["rule", "model", "ours us", *names[1:], "vs best", "of copy rate"]]
    for cell in document["cells"]:
        times = [f"{1e6 * cell['contenders'][name]['median_s']:.0f}" for name in names]
        # A model that fits into a cache moves nothing through memory.
        rate = report.percent(cell["share_of_copy"]) if cell["numbers"] > 10_000_000 else "in cache"
        rows.append([cell["rule"], cell["model"], *times, report.ratio_text(cell["ratio"]), rate])
    return [report.Table("", rows, 2)]
