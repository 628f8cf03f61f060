"""Batch sizes that change during a call or between forward and backward: never an invalid memory access."""

from __future__ import annotations

import pytest
import torch
from helpers import run_python
from torch.nn.utils.rnn import PackedSequence

from rnnkernels import LeakyRNN, functional

STEPS, BATCH, HIDDEN, INPUTS = 4, 3, 5, 2


def sizes():
    return torch.tensor([3, 3, 2, 1])


def leaky(batch_sizes, **options):
    return functional.leaky_recurrence(
        torch.ones(9, HIDDEN, requires_grad=True),
        torch.ones(BATCH, HIDDEN),
        torch.ones(HIDDEN, HIDDEN),
        0.5,
        batch_sizes=batch_sizes,
        nonlinearity="tanh",
        **options,
    )[0]


def projected(batch_sizes, **options):
    return functional.projected_recurrence(
        torch.ones(9, INPUTS, requires_grad=True),
        torch.ones(BATCH, HIDDEN),
        torch.ones(HIDDEN, INPUTS),
        torch.ones(HIDDEN, HIDDEN),
        None,
        0.5,
        batch_sizes=batch_sizes,
        **options,
    )[0]


def layer(batch_sizes):
    rows = torch.ones(9, INPUTS, requires_grad=True)
    return LeakyRNN(INPUTS, HIDDEN, 2, bidirectional=True)(PackedSequence(rows, batch_sizes))[0].data


def reversed_(batch_sizes):
    return projected(batch_sizes, reverse=True)


CALLS = {"leaky": leaky, "projected": projected, "reversed": reversed_, "layer": layer}


@pytest.mark.parametrize("call", CALLS)
def test_a_change_between_forward_and_backward_raises(call):
    batch_sizes = sizes()
    output = CALLS[call](batch_sizes)
    batch_sizes[1] = 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize(
    "changed", [[3, 3, 2, 10**9], [10**9, 3, 2, 1], [3, 3, 2, -1], [3, 1, 2, 3]], ids=str
)
@pytest.mark.parametrize("call", CALLS)
def test_a_change_that_torch_does_not_see_is_checked_again(call, changed):
    batch_sizes = sizes()
    output = CALLS[call](batch_sizes)
    batch_sizes.numpy()[:] = changed  # without a new version
    with pytest.raises(ValueError, match="batch_sizes"):
        output.sum().backward()


def test_checkpointing_has_a_copy():
    batch_sizes = sizes()
    gradients = []
    for change in (False, True):
        rows = torch.ones(9, INPUTS, requires_grad=True)
        output, _ = functional.projected_recurrence(
            rows, None, torch.ones(HIDDEN, INPUTS), torch.ones(HIDDEN, HIDDEN) / HIDDEN, None, 0.5,
            batch_sizes=batch_sizes, checkpoint_every=2,
        )  # fmt: skip
        if change:
            batch_sizes.fill_(10**9)
        gradients.append(torch.autograd.grad(output.square().sum(), rows)[0])
    assert torch.equal(*gradients)


CHANGING = """
import collections, sys, threading, time
import torch
from rnnkernels import functional

torch.set_num_threads(2)
sys.setswitchinterval(1e-5)
STEPS, BATCH, HIDDEN, INPUTS = 200, 32, 8, 3
sizes = torch.full((STEPS,), BATCH)
values = sizes.numpy()
x, h0 = torch.randn(STEPS * BATCH, INPUTS), torch.zeros(BATCH, HIDDEN)
w_ih, w_hh = torch.randn(HIDDEN, INPUTS), torch.randn(HIDDEN, HIDDEN) / 9
done = threading.Event()

def change():
    while not done.is_set():
        for wrong in (10**9, -5, BATCH - 1, 2**62):
            values[1:] = wrong
            values[1:] = BATCH
        time.sleep(5e-3)  # calls see the right values, then wrong ones, also on a busy host
        values[1:] = BATCH - 1
        time.sleep(5e-3)
        values[1:] = BATCH

def run(x, w_hh, **options):
    return functional.projected_recurrence(
        x, h0, w_ih, w_hh, None, 0.5, batch_sizes=sizes, nonlinearity="tanh", **options)[0]

def double_backward(x):
    gradient, = torch.autograd.grad(run(x, w_hh).square().sum(), x, create_graph=True)
    gradient.sum().backward()

calls = {
    "backward": lambda x: run(x, w_hh).sum().backward(),
    "checkpoint": lambda x: run(x, w_hh, checkpoint_every=13).sum().backward(),
    "jvp": lambda x: torch.func.jvp(lambda y: run(y, w_hh), (x.detach(),), (x.detach(),)),
    "vmap": lambda x: torch.vmap(lambda w: run(x, w))(w_hh.expand(3, HIDDEN, HIDDEN)),
    "double backward": double_backward,
}
thread = threading.Thread(target=change)
thread.start()
end, counts = time.monotonic() + 6, collections.Counter()
while time.monotonic() < end:
    for name, call in calls.items():
        try:
            call(x.clone().requires_grad_())
            counts["done"] += 1
        except (ValueError, RuntimeError) as error:
            counts["refused"] += 1
done.set()
thread.join()
print(dict(counts))
"""


def test_another_thread_may_change_them_during_calls(tmp_path):
    ran = run_python("-c", CHANGING, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "'done'" in ran.stdout
    assert "'refused'" in ran.stdout
