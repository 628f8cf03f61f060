"""Fixed points, the profiler, functional_call, DistributedDataParallel and flop counts."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers import distance
from torch.func import functional_call, jacrev
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from rnnkernels import LeakyRNN


@pytest.mark.parametrize("form", ["rate", "current"])
def test_fixed_points_are_found_by_descending_the_speed_of_the_state(form):
    # As fixed-point finders do: the batch of hx holds many states, and one step runs with a constant input.
    layer = LeakyRNN(2, 8, nonlinearity="tanh", decay=0.8, form=form, dtype=torch.float64)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    layer.weight_hh_l0.mul_(2)
    x = torch.full((1, 32, 2), 0.3, dtype=torch.float64)
    states = torch.randn(1, 32, 8, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([states], max_iter=300, tolerance_grad=1e-12, tolerance_change=0)

    def speed():
        optimizer.zero_grad()
        _, h_n = layer(x, states)
        q = 0.5 * (h_n - states).square().sum(-1).mean()
        q.backward()
        return q

    first = speed().item()
    optimizer.step(speed)
    assert speed().item() < 1e-12 * first
    point = states.detach()
    assert distance(layer(x, point)[1], point) < 1e-5

    # The linearization at a fixed point is the Jacobian of the step with respect to the state.
    def step(h):
        return layer(x[:, :1], h[None, None])[1][0, 0]

    found = torch.autograd.functional.jacobian(step, point[0, 0])
    slope = 1 - torch.tanh(point[0, 0] if form == "current" else _argument(layer, x[0, 0], point[0, 0])) ** 2
    weight = layer.weight_hh_l0 * slope[None, :] if form == "current" else slope[:, None] * layer.weight_hh_l0
    expected = 0.8 * torch.eye(8, dtype=torch.float64) + 0.2 * weight
    assert distance(found, expected) < 1e-12
    assert distance(jacrev(step)(point[0, 0]), expected) < 1e-12


def _argument(layer, x, h):
    return layer.weight_ih_l0 @ x + layer.bias_ih_l0 + layer.bias_hh_l0 + layer.weight_hh_l0 @ h


def test_the_profiler_shows_the_operator_with_its_shapes():
    layer, x = LeakyRNN(3, 5, 2, decay=0.5), torch.randn(7, 2, 3)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        layer(x)[0].sum().backward()
    events = {name: [e for e in profiler.events() if e.name == name] for name in
              ("rnnkernels::projected_recurrence", "rnnkernels::projected_recurrence_backward")}  # fmt: skip
    forward, backward = events.values()
    assert len(forward) == len(backward) == 2
    for event, inputs in zip(forward, (3, 5), strict=True):
        assert event.input_shapes[0] == [7, 2, inputs]  # input
        assert event.input_shapes[2:4] == [[5, inputs], [5, 5]]  # weight_ih, weight_hh


def test_functional_call_replaces_any_parameter():
    layer = LeakyRNN(3, 5, 2, decay=0.5, learn_decay=True, learn_h0=True)
    other = LeakyRNN(3, 5, 2, decay=0.5, learn_decay=True, learn_h0=True)
    with torch.no_grad():
        other.h0.normal_(), other.decay_logit.normal_()
    x = torch.randn(4, 2, 3)
    assert torch.equal(functional_call(layer, dict(other.named_parameters()), x)[0], other(x)[0])


WORKER = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from rnnkernels import LeakyRNN

rank, file = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
torch.manual_seed(rank)  # DDP broadcasts the parameters of rank 0
layer = LeakyRNN(3, 5, 2, bidirectional=True, decay=0.5, learn_decay=True)
module = DistributedDataParallel(layer)
torch.manual_seed(7)
x = torch.randn(6, 4, 3)[:, 2 * rank : 2 * rank + 2]
module(x)[0].square().mean().backward()
grads = [p.grad for p in layer.parameters()]
torch.save({"x": x, "state": layer.state_dict(), "grads": grads}, f"{file}.{rank}")
dist.destroy_process_group()
"""


def test_two_processes_train_one_network(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    rendezvous = str(tmp_path / "rendezvous")
    workers = [subprocess.Popen([sys.executable, str(script), str(rank), rendezvous]) for rank in range(2)]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    parts = [torch.load(f"{rendezvous}.{rank}") for rank in range(2)]
    layer = LeakyRNN(3, 5, 2, bidirectional=True, decay=0.5, learn_decay=True)
    layer.load_state_dict(parts[0]["state"])
    layer(torch.cat([part["x"] for part in parts], 1))[0].square().mean().backward()
    for i, parameter in enumerate(layer.parameters()):
        assert torch.equal(parts[0]["grads"][i], parts[1]["grads"][i])
        assert distance(parts[0]["grads"][i], parameter.grad) < 1e-5


@pytest.mark.parametrize("with_drive", [False, True])  # each of the two operators
def test_flops_are_counted_as_those_of_nn_rnn(with_drive):
    layers = LeakyRNN(3, 5, 2, bidirectional=True), torch.nn.RNN(3, 5, 2, bidirectional=True)
    x, hx = torch.randn(7, 2, 3), torch.randn(4, 2, 5, requires_grad=True)
    counts = []
    for layer in layers:
        drive = {"drive": torch.zeros(7, 2, 10)} if with_drive and layer is layers[0] else {}
        with FlopCounterMode(display=False) as counter:
            output, h_n = layer(x, hx, **drive)
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            (output.sum() + h_n.sum()).backward()
        counts.append((forward, counter.get_total_flops()))
    assert counts[0] == counts[1]
