"""Checkpointing in time: backward keeps every k-th state and recomputes the steps between them.

    forward:   all steps in one call; the states between two segments of k steps are kept, T/k of them
    backward:  for each segment, from the last one to the first: the call again, from the state before the
               segment, and its gradients; the gradient of that state is passed on to the previous segment

(Chen et al. 2016, arXiv 1604.06174.) If the gradients are to be differentiated again, under transforms and in
compiled functions, :func:`checkpoint_each` does the same with torch's checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rnnkernels._autograd.modes import in_forward_mode, in_torch_func, is_batched
from rnnkernels._devices import autocasts
from rnnkernels._ops.spec import ProjectedTensors, RecurrenceSpec

# The tensors of which all segments add up their gradients.
PARAMETERS = ("weight_ih", "weight_hh", "bias", "decay")

Run = Callable[[ProjectedTensors, RecurrenceSpec], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Checkpointing:
    """A recurrence in segments: ``run`` computes ``(output, h_n)`` of some steps."""

    run: Run
    spec: RecurrenceSpec
    every: int

    def segments(self, steps: int, batch_sizes: Tensor | None) -> Iterator[Segment]:
        """The segments in the order of the time loop; at least one."""
        bounds = [(first, min(first + self.every, steps)) for first in range(0, max(steps, 1), self.every)]
        sizes = None if batch_sizes is None else batch_sizes.tolist()
        ends = [0]
        for size in sizes or ():
            ends.append(ends[-1] + size)
        for first, last in bounds[::-1] if self.spec.reverse else bounds:
            if sizes is None:
                yield Segment(first, last, first, last - first, None, 0, 0)
                continue
            # The rows that continue from the previous step are the first ones of both steps.
            previous = last if self.spec.reverse else first - 1
            carried = min(sizes[first], sizes[previous]) if 0 <= previous < steps else 0
            begin = ends[previous] if carried else 0
            yield Segment(first, last, ends[first], ends[last] - ends[first], sizes[first], begin, carried)

    def segments_of(self, tensors: ProjectedTensors) -> list[Segment]:
        """The segments of a call."""
        sizes = tensors.batch_sizes
        return list(self.segments(tensors.input.shape[0] if sizes is None else len(sizes), sizes))


class Segment(NamedTuple):
    """The steps from ``first`` to ``last``. The fields about rows are 0 (or None) without ``batch_sizes``."""

    first: int
    last: int  # exclusive
    begin: int  # first index in ``input``: a step, or a packed row
    length: int  # number of indices in ``input``
    rows: int | None  # largest number of rows of a step
    previous: int  # first packed row of the previous step in ``output``
    carried: int  # number of rows that continue from it; the others start from their h0

    def of(self, x: Tensor | None) -> Tensor | None:
        """The segment's part of a sequence."""
        return None if x is None else x.narrow(0, self.begin, self.length)

    def sizes(self, batch_sizes: Tensor | None) -> Tensor | None:
        return None if batch_sizes is None else batch_sizes[self.first : self.last]

    def previous_state(self, output: Tensor, reverse: bool) -> Tensor:
        """The state that the segment continues from; not for the first segment."""
        if self.rows is None:
            return output[self.last if reverse else self.first - 1]
        return output.narrow(0, self.previous, self.carried)


def checkpointed(
    run: Run, tensors: ProjectedTensors, spec: RecurrenceSpec, every: int
) -> tuple[Tensor, Tensor]:
    """``run(tensors, spec)``, keeping every ``every``-th state for backward."""
    every_tensor = tuple(x if isinstance(x, Tensor) else None for x in tensors)
    if not torch.is_grad_enabled() or not any(x is not None and x.requires_grad for x in every_tensor):
        return run(tensors, spec)
    sizes = tensors.batch_sizes
    if sizes is not None:
        if sizes.numel() > len(tensors.input):
            return run(tensors, spec)  # it refuses them
        # The segments come from one copy, because another thread may change the caller's tensor.
        tensors = tensors._replace(batch_sizes=sizes.clone())
    plan = Checkpointing(run, spec, every)
    if torch.compiler.is_compiling() or in_torch_func() or in_forward_mode(every_tensor):
        return checkpoint_each(plan, tensors)
    results: tuple[Tensor, Tensor] = _Recomputed.apply(plan, *tensors)  # type: ignore[no-untyped-call]
    return results


def checkpoint_each(plan: Checkpointing, tensors: ProjectedTensors) -> tuple[Tensor, Tensor]:
    """Use one of torch's checkpoints for each segment and concatenate the outputs. ``torch.func`` does not
    support checkpoints, so nothing is recomputed under its transforms.
    """
    if in_torch_func():
        return plan.run(tensors, plan.spec)
    sizes = tensors.batch_sizes
    segments = plan.segments_of(tensors)
    # torch.split has one backward for all its results; one slice per segment would add up T/k full tensors.
    lengths = [segment.length for segment in (segments[::-1] if plan.spec.reverse else segments)]
    inputs = torch.split(tensors.input, lengths)
    drives = [None] * len(inputs) if tensors.drive is None else torch.split(tensors.drive, lengths)
    outputs, state = [], tensors.h0
    for segment in segments:
        i = segment.first // plan.every
        active = state if segment.rows is None or state is None else state[: segment.rows]
        part = tensors._replace(input=inputs[i], h0=active, drive=drives[i], batch_sizes=segment.sizes(sizes))
        output, after = checkpoint(_run_flat, plan, *part, use_reentrant=False, preserve_rng_state=False)
        outputs.append(output)
        # Rows that have ended (in reverse: not started) keep their state.
        kept = None if segment.rows is None or state is None else state[segment.rows :]
        state = after if kept is None or len(kept) == 0 else torch.cat([after, kept])
    assert state is not None
    return torch.cat(outputs[::-1] if plan.spec.reverse else outputs), state


def _run_flat(plan: Checkpointing, *tensors: Any) -> tuple[Tensor, Tensor]:
    return plan.run(ProjectedTensors(*tensors), plan.spec)


class _Recomputed(torch.autograd.Function):
    """``(plan, *ProjectedTensors) -> (output, h_n)``; see the header of this file."""

    @staticmethod
    def forward(ctx: Any, plan: Checkpointing, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Save the states between the segments, in the order of the time loop."""
        tensors = ProjectedTensors(*inputs)
        output, h_n = plan.run(tensors, plan.spec)
        ctx.plan, ctx.segments = plan, plan.segments_of(tensors)
        between = [segment.previous_state(output, plan.spec.reverse) for segment in ctx.segments[1:]]
        kept = torch.cat(between) if between else output.new_zeros(0, output.shape[-1])
        ctx.numbers = [None if isinstance(x, Tensor) else x for x in tensors]  # a decay may be a number
        ctx.save_for_backward(kept, *(x if isinstance(x, Tensor) else None for x in tensors))
        ctx.set_materialize_grads(False)
        device = tensors.input.device
        ctx.autocast = torch.get_autocast_dtype(device.type) if autocasts(device) else None
        return output, h_n

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None) -> tuple[Any, ...]:
        """Run one segment after the other."""
        kept, *saved = ctx.saved_tensors
        needs: Any = ProjectedTensors(*ctx.needs_input_grad[1:])
        if grad_output is None and grad_h_n is None:
            return (None,) * (1 + len(needs))
        tensors = ProjectedTensors(*(n if x is None else x for x, n in zip(saved, ctx.numbers, strict=True)))
        # Without autocast's cache, which would keep a rounded copy of the leaves of every backward call.
        autocast: AbstractContextManager[object] = nullcontext()
        if ctx.autocast is not None:
            autocast = torch.autocast(kept.device.type, ctx.autocast, cache_enabled=False)
        with autocast:
            if torch.is_grad_enabled() or in_torch_func() or is_batched(grad_output, grad_h_n):
                grads = _differentiable(ctx.plan, tensors, needs, grad_output, grad_h_n)
            else:
                backward = _Backward(ctx.plan, ctx.segments, tensors, needs)
                grads = backward.run(kept, grad_output, grad_h_n)
        return (None, *grads)


def _differentiable(
    plan: Checkpointing, tensors: Any, needs: Any, grad_output: Tensor | None, grad_h_n: Tensor | None,
) -> list[Tensor | None]:  # fmt: skip
    """The gradients as differentiable torch code."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that no gradient flows through the operations that the tensors were computed with.
        views: Any = (x.view_as(x) if need else x for x, need in zip(tensors, needs, strict=True))
        views = ProjectedTensors(*views)
        results = checkpoint_each(plan, views)
        pairs = [(y, g) for y, g in zip(results, (grad_output, grad_h_n), strict=True) if g is not None]
        found = torch.autograd.grad(
            [y for y, _ in pairs], [x for x, need in zip(views, needs, strict=True) if need],
            [g for _, g in pairs], create_graph=again, allow_unused=True,
        )  # fmt: skip
    rest = iter(found)
    return [next(rest) if need else None for need in needs]


class _Backward:
    """The backward pass over the segments: the gradient that each passes on, and the sums over all."""

    def __init__(self, plan: Checkpointing, segments: list[Segment], tensors: Any, needs: Any) -> None:
        self.plan, self.segments, self.needs = plan, segments, needs  # needs: a bool for each of the tensors
        # New leaves: their gradients are needed here, not in the tensors they were computed from.
        leaves = {
            name: x.detach().requires_grad_(bool(getattr(needs, name)))
            for name in PARAMETERS
            if isinstance(x := getattr(tensors, name), Tensor)
        }
        self.tensors = tensors._replace(**leaves)
        self.sums: dict[str, Tensor] = {}
        self.d_input = torch.zeros_like(tensors.input) if needs.input else None
        self.d_drive = torch.zeros_like(tensors.drive) if needs.drive and tensors.drive is not None else None

    def run(self, kept: Tensor, grad_output: Tensor | None, grad_h_n: Tensor | None) -> list[Tensor | None]:
        tensors, segments = self.tensors, self.segments
        batch = tensors.input.shape[1] if tensors.batch_sizes is None else len(tensors.h0)
        carried = kept.new_zeros(batch, kept.shape[-1])
        if grad_h_n is not None:
            carried.copy_(grad_h_n)
        states = torch.split(kept, [batch if s.rows is None else s.carried for s in segments[1:]])
        for i in reversed(range(len(segments))):
            self._segment(segments[i], tensors.h0 if i == 0 else states[i - 1], grad_output, carried)
        grads: dict[str, Tensor | None] = {"input": self.d_input, "drive": self.d_drive}
        if self.needs.h0 and tensors.h0 is not None:
            grads["h0"] = carried.to(tensors.h0.dtype)
        for name, total in self.sums.items():
            grads[name] = total.to(getattr(tensors, name).dtype)
        return [grads.get(name) for name in tensors._fields]

    def _segment(
        self, segment: Segment, state: Tensor | None, grad_output: Tensor | None, carried: Tensor
    ) -> None:
        tensors = self.tensors
        if segment.rows is not None and state is not None:  # rows that start in this segment
            assert tensors.h0 is not None
            fresh = tensors.h0[len(state) : segment.rows]
            state = torch.cat([state[: segment.rows], fresh.to(state.dtype)])
        parts = {"input": segment.of(tensors.input), "h0": state, "drive": segment.of(tensors.drive)}
        leaves: dict[str, Any] = {name: None if x is None else x.detach() for name, x in parts.items()}
        needs = self.needs._replace(h0=state is not None)  # the previous segment needs it
        wanted = [name for name, need in zip(tensors._fields, needs, strict=True) if need]
        for name in leaves.keys() & wanted:
            leaves[name].requires_grad_()
        part = tensors._replace(**leaves, batch_sizes=segment.sizes(tensors.batch_sizes))
        with torch.enable_grad():
            output, h_n = self.plan.run(part, self.plan.spec)
        gradient = segment.of(grad_output)
        rows = carried[: segment.rows]
        found = torch.autograd.grad(
            [h_n] if gradient is None else [h_n, output],
            [getattr(part, name) for name in wanted],
            [rows] if gradient is None else [rows, gradient],
            allow_unused=True,
        )
        self._add(segment, dict(zip(wanted, found, strict=True)), rows)

    def _add(self, segment: Segment, grads: dict[str, Tensor | None], rows: Tensor) -> None:
        for name, whole in (("input", self.d_input), ("drive", self.d_drive)):
            part = grads.get(name)
            if whole is not None and part is not None:
                whole.narrow(0, segment.begin, segment.length).copy_(part)
        if (d_state := grads.get("h0")) is not None:
            rows.copy_(d_state)
        for name in PARAMETERS:
            if (part := grads.get(name)) is not None:  # a sum in half precision would lose small parts
                part = part.to(torch.promote_types(part.dtype, torch.float32))
                self.sums[name] = self.sums[name].add_(part) if name in self.sums else part
