"""A long sequence in segments of k steps: backward keeps the states between them and recomputes the rest.

    forward:   all steps in one call; of its states those between two segments are kept, T/k of them
    backward:  for each segment, from the last of the walk: the call again, from the state before it, and
               its gradients; that of its first state goes on to the segment before it

(Chen et al. 2016, arXiv 1604.06174.) Where the gradients are to be differentiated again, in transforms and
in compiled functions, :func:`one_by_one` does the same with torch's checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rnnkernels._autograd.modes import in_forward_mode, in_torch_func, is_batched
from rnnkernels._checks import autocasts

# (input, h0, drive, batch_sizes, weights) -> (output, h_n)
Call = Callable[..., tuple[Tensor, Tensor]]


class Walk(NamedTuple):
    """How a sequence is cut and walked."""

    every: int
    reverse: bool
    time: int  # the dimension of the steps in `input` and `drive`; `output` has them in front

    def segments(self, steps: int, batch_sizes: Tensor | None) -> Iterator[Segment]:
        """In the order of the walk; at least one."""
        bounds = [(first, min(first + self.every, steps)) for first in range(0, max(steps, 1), self.every)]
        sizes = None if batch_sizes is None else batch_sizes.tolist()
        ends = [0]
        for size in sizes or ():
            ends.append(ends[-1] + size)
        for first, last in bounds[::-1] if self.reverse else bounds:
            if sizes is None:
                yield Segment(first, last, first, last - first, None, 0, 0)
                continue
            # The rows that go on from the step before, in the walk, are the first of each.
            before = last if self.reverse else first - 1
            carried = min(sizes[first], sizes[before]) if 0 <= before < steps else 0
            begin = ends[before] if carried else 0
            yield Segment(first, last, ends[first], ends[last] - ends[first], sizes[first], begin, carried)


class Segment(NamedTuple):
    """Some steps. Without ``rows`` all tensors have a dimension of steps, and what concerns rows is 0."""

    first: int
    last: int
    begin: int  # along `input`: the first step, or the first packed row
    length: int
    rows: int | None  # of its first step, the most
    before: int  # where the state before it begins in `output`,
    carried: int  # and for how many rows; the others have their h0

    def cut(self, x: Tensor | None, dim: int) -> Tensor | None:
        return None if x is None else x.narrow(dim, self.begin, self.length)

    def sizes(self, batch_sizes: Tensor | None) -> Tensor | None:
        return None if batch_sizes is None else batch_sizes[self.first : self.last]

    def state_before(self, output: Tensor, reverse: bool) -> Tensor:
        """The rows of ``output`` that it goes on from; not for the first of the walk."""
        if self.rows is None:
            return output[self.last if reverse else self.first - 1]
        return output.narrow(0, self.before, self.carried)


def in_segments(call: Call, walk: Walk, input: Tensor, h0: Tensor | None, drive: Tensor | None,
                batch_sizes: Tensor | None, weights: tuple[Any, ...]) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The call, with the memory for backward of a few segments."""
    tensors = tuple(x if isinstance(x, Tensor) else None for x in (input, h0, drive, *weights))
    if not torch.is_grad_enabled() or not any(x is not None and x.requires_grad for x in tensors):
        return call(input, h0, drive, batch_sizes, weights)
    if torch.compiler.is_compiling() or in_torch_func() or in_forward_mode(tensors):
        return one_by_one(call, walk, input, h0, drive, batch_sizes, weights)
    results: tuple[Tensor, Tensor] = _Recomputed.apply(  # type: ignore[no-untyped-call]
        call, walk, batch_sizes, input, h0, drive, *weights
    )
    return results


def one_by_one(call: Call, walk: Walk, input: Tensor, h0: Tensor | None, drive: Tensor | None,
               batch_sizes: Tensor | None, weights: tuple[Any, ...]) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A checkpoint for each segment, and their outputs put together. ``torch.func`` knows no checkpoints, so
    there nothing is recomputed.
    """
    if in_torch_func():
        return call(input, h0, drive, batch_sizes, weights)
    steps = input.shape[walk.time] if batch_sizes is None else len(batch_sizes)
    segments = list(walk.segments(steps, batch_sizes))
    # split has one backward for all of its pieces; a slice for each segment would add up T/k full tensors.
    lengths = [segment.length for segment in (segments[::-1] if walk.reverse else segments)]
    inputs = torch.split(input, lengths, walk.time)
    drives = [None] * len(inputs) if drive is None else torch.split(drive, lengths, walk.time)
    outputs, state = [], h0
    for segment in segments:
        i = segment.first // walk.every
        active = state if segment.rows is None or state is None else state[: segment.rows]
        arguments = (inputs[i], active, drives[i], segment.sizes(batch_sizes), weights)
        output, after = checkpoint(call, *arguments, use_reentrant=False, preserve_rng_state=False)
        outputs.append(output)
        # Rows that have ended, or in reverse not begun, keep their state.
        kept = None if segment.rows is None or state is None else state[segment.rows :]
        state = after if kept is None or len(kept) == 0 else torch.cat([after, kept])
    assert state is not None
    return torch.cat(outputs[::-1] if walk.reverse else outputs), state


class _Recomputed(torch.autograd.Function):
    """``(call, walk, batch_sizes, input, h0, drive, *weights) -> (output, h_n)``; see this file's head."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, walk: Walk, batch_sizes: Tensor | None, input: Tensor, h0: Tensor | None,
        drive: Tensor | None, *weights: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Keep the states between the segments, in the order of the walk."""
        output, h_n = call(input, h0, drive, batch_sizes, weights)
        steps = input.shape[walk.time] if batch_sizes is None else len(batch_sizes)
        ctx.call, ctx.walk, ctx.segments = call, walk, list(walk.segments(steps, batch_sizes))
        between = [segment.state_before(output, walk.reverse) for segment in ctx.segments[1:]]
        kept = torch.cat(between) if between else output.new_zeros(0, output.shape[-1])
        arguments = (input, h0, drive, *weights)
        ctx.others = [None if isinstance(x, Tensor) else x for x in arguments]
        ctx.save_for_backward(kept, batch_sizes, *(x if isinstance(x, Tensor) else None for x in arguments))
        ctx.set_materialize_grads(False)
        device = input.device.type
        ctx.autocast = torch.get_autocast_dtype(device) if autocasts(input.device) else None
        return output, h_n

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None) -> tuple[Any, ...]:
        """A segment at a time."""
        kept, batch_sizes, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        if grad_output is None and grad_h_n is None:
            return (None,) * (3 + len(needs))
        arguments = [other if x is None else x for x, other in zip(tensors, ctx.others, strict=True)]
        # Without its cache, which would keep a rounded copy of the leaves of every backward.
        autocast: AbstractContextManager[object] = nullcontext()
        if ctx.autocast is not None:
            autocast = torch.autocast(kept.device.type, ctx.autocast, cache_enabled=False)
        with autocast:
            if torch.is_grad_enabled() or in_torch_func() or is_batched(grad_output, grad_h_n):
                grads = _differentiable(ctx, arguments, batch_sizes, needs, grad_output, grad_h_n)
            else:
                grads = _Backward(ctx, arguments, batch_sizes, needs).walk(kept, grad_output, grad_h_n)
        return (None, None, None, *grads)


def _differentiable(
    ctx: Any, arguments: list[Any], batch_sizes: Tensor | None, needs: tuple[bool, ...],
    grad_output: Tensor | None, grad_h_n: Tensor | None,
) -> list[Tensor | None]:  # fmt: skip
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # As views, or gradients would also come by way of what the arguments were themselves made of.
        arguments = [x.view_as(x) if need else x for x, need in zip(arguments, needs, strict=True)]
        input, h0, drive, *weights = arguments
        results = one_by_one(ctx.call, ctx.walk, input, h0, drive, batch_sizes, tuple(weights))
        pairs = [(y, g) for y, g in zip(results, (grad_output, grad_h_n), strict=True) if g is not None]
        found = torch.autograd.grad(
            [y for y, _ in pairs], [x for x, need in zip(arguments, needs, strict=True) if need],
            [g for _, g in pairs], create_graph=again, allow_unused=True,
        )  # fmt: skip
    rest = iter(found)
    return [next(rest) if need else None for need in needs]


class _Backward:
    """The walk back: what is carried from one segment to the next, and the sums over all of them."""

    def __init__(
        self, ctx: Any, arguments: list[Any], batch_sizes: Tensor | None, needs: tuple[bool, ...]
    ) -> None:
        self.ctx, self.batch_sizes, self.needs = ctx, batch_sizes, needs
        self.input, self.h0, self.drive, *self.weights = arguments
        # Leaves of their own: their gradients are wanted here, not wherever they come from.
        self.weights = [
            x.detach().requires_grad_(need) if isinstance(x, Tensor) else x
            for x, need in zip(self.weights, needs[3:], strict=True)
        ]
        self.sums: list[Tensor | None] = [None] * len(self.weights)
        self.d_input = torch.zeros_like(self.input) if needs[0] else None
        self.d_drive = torch.zeros_like(self.drive) if needs[2] else None

    def walk(self, kept: Tensor, grad_output: Tensor | None, grad_h_n: Tensor | None) -> list[Tensor | None]:
        segments: list[Segment] = self.ctx.segments
        batch = self.input.shape[1 - self.ctx.walk.time] if self.batch_sizes is None else len(self.h0)
        carried = kept.new_zeros(batch, kept.shape[-1])
        if grad_h_n is not None:
            carried.copy_(grad_h_n)
        states = torch.split(kept, [batch if s.rows is None else s.carried for s in segments[1:]])
        for i in reversed(range(len(segments))):
            self._segment(segments[i], self.h0 if i == 0 else states[i - 1], grad_output, carried)
        d_h0 = carried.to(self.h0.dtype) if self.needs[1] else None
        sums = [
            total if total is None else total.to(weight.dtype)
            for total, weight in zip(self.sums, self.weights, strict=True)
        ]
        return [self.d_input, d_h0, self.d_drive, *sums]

    def _segment(
        self, segment: Segment, state: Tensor | None, grad_output: Tensor | None, carried: Tensor
    ) -> None:
        dim = self.ctx.walk.time
        if segment.rows is not None and state is not None:  # rows that no segment carried begin from h0
            fresh = self.h0[len(state) : segment.rows]
            state = torch.cat([state[: segment.rows], fresh.to(state.dtype)])
        cut = (segment.cut(self.input, dim), state, segment.cut(self.drive, dim))
        leaves = [None if leaf is None else leaf.detach() for leaf in cut]
        wanted = (self.needs[0], state is not None, self.needs[2], *self.needs[3:])
        for leaf, want in zip(leaves, wanted[:3], strict=True):
            if leaf is not None:
                leaf.requires_grad_(want)
        with torch.enable_grad():
            output, h_n = self.ctx.call(*leaves, segment.sizes(self.batch_sizes), tuple(self.weights))
        gradient = segment.cut(grad_output, 0)
        rows = carried[: segment.rows]
        found = iter(
            torch.autograd.grad(
                [h_n] if gradient is None else [h_n, output],
                [x for x, want in zip([*leaves, *self.weights], wanted, strict=True) if want],
                [rows] if gradient is None else [rows, gradient],
                allow_unused=True,
            )
        )
        grads = [next(found) if want else None for want in wanted]
        for whole, part in ((self.d_input, grads[0]), (self.d_drive, grads[2])):
            if whole is not None and part is not None:
                whole.narrow(dim, segment.begin, segment.length).copy_(part)
        if grads[1] is not None:
            rows.copy_(grads[1])
        for i, part in enumerate(grads[3:]):
            if part is not None:  # half precision would lose what is added to a large sum
                total = self.sums[i]
                part = part.to(torch.promote_types(part.dtype, torch.float32))
                self.sums[i] = part if total is None else total.add_(part)
