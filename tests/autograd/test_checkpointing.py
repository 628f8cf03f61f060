"""Long sequences: checkpointing in time, and truncated backpropagation through time."""

from __future__ import annotations

import copy
import gc
import itertools
import sys

import pytest
import torch
from helpers import KINDS, clear_problem, distance
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import pack_sequence
from torch.profiler import ProfilerActivity, profile

from rnnkernels import LeakyRNN, functional, projected_recurrence, truncated_bptt
from rnnkernels._autograd import checkpointing
from rnnkernels._autograd.checkpointing import Checkpointing, checkpoint_each

# --- Every k-th state --------------------------------------------------------------------------------


def arguments_of(
    seed: int, *, packed: bool, form: str, nonlinearity: str, reverse: bool
) -> dict[str, Tensor]:
    """Return arguments of projected_recurrence; all tensors require gradients."""
    problem = clear_problem(
        seed, 11, 3, 5, packed=packed, form=form, nonlinearity=nonlinearity, reverse=reverse
    )
    rows = problem.pre.shape[:-1]
    named = {
        "input": torch.randn(*rows, 4), "h0": problem.h0, "weight_ih": torch.randn(5, 4) / 2,
        "weight_hh": problem.weight_hh, "bias": torch.randn(5), "decay": problem.decay, "drive": problem.pre,
    }  # fmt: skip
    tensors = {name: x.double().detach().requires_grad_() for name, x in named.items()}
    return tensors | {"batch_sizes": problem.batch_sizes}


def derivatives(arguments, **options):
    results = projected_recurrence(**arguments, **options)
    named = {name: x for name, x in arguments.items() if name != "batch_sizes"}
    grads = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in results]
    found = torch.autograd.grad(results, list(named.values()), grads)
    return dict(zip(["output", "h_n", *named], [x.detach() for x in results] + list(found), strict=True))


@pytest.mark.parametrize("every", [1, 3, 4, 11, 50])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("form", "nonlinearity"), KINDS)
def test_checkpointing_changes_no_gradient(form, nonlinearity, reverse, packed, every):
    spec = {"form": form, "nonlinearity": nonlinearity, "reverse": reverse}
    arguments = arguments_of(5, packed=packed, **spec)
    expected = derivatives(arguments, **spec)
    found = derivatives(arguments, **spec, checkpoint_every=every)
    for name, value in expected.items():
        assert distance(found[name], value) < 1e-14, name


@pytest.mark.parametrize("every", [1, 4, 50])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_recomputing_changes_no_bit_of_the_segments(reverse, packed, every, monkeypatch):
    spec = {"form": "rate", "nonlinearity": "relu", "reverse": reverse}
    arguments = arguments_of(6, packed=packed, **spec)
    found = derivatives(arguments, **spec, checkpoint_every=every)
    monkeypatch.setattr(
        functional,
        "checkpointed",
        lambda run, tensors, *plan: checkpoint_each(Checkpointing(run, *plan), tensors),
    )
    monkeypatch.setattr(checkpointing, "checkpoint", lambda f, *args, **options: f(*args))
    kept = derivatives(arguments, **spec, checkpoint_every=every)
    for name, value in kept.items():
        assert torch.equal(found[name], value), name


def test_batch_first_input_gives_the_same_gradients():
    spec = {"form": "rate", "nonlinearity": "tanh", "reverse": False}
    arguments = arguments_of(7, packed=False, **spec)
    expected = derivatives(arguments, **spec)
    for name in ("input", "drive"):
        arguments[name] = arguments[name].detach().transpose(0, 1).contiguous().requires_grad_()
    for every in (None, 4):
        found = derivatives(arguments, **spec, batch_first=True, checkpoint_every=every)
        for name, value in expected.items():
            value = value.transpose(0, 1) if name in ("input", "drive") else value
            assert distance(found[name], value) < 1e-14, name
    with pytest.raises(ValueError, match="batch_first must be False with batch_sizes"):
        projected_recurrence(**arguments_of(7, packed=True, **spec), batch_first=True)


@pytest.mark.parametrize("layout", ["padded", "batch_first", "unbatched", "packed"])
def test_the_layer_with_checkpointing_equals_the_layer(layout):
    options = {
        "bidirectional": True,
        "batch_first": layout == "batch_first",
        "decay": 0.7,
        "learn_decay": True,
    }
    layer = LeakyRNN(3, 5, 2, "tanh", learn_h0=True, dtype=torch.float64, **options)
    twin = LeakyRNN(3, 5, 2, "tanh", learn_h0=True, dtype=torch.float64, checkpoint_every=3, **options)
    twin.load_state_dict(layer.state_dict())
    input = torch.randn(*{"unbatched": (8,), "batch_first": (2, 8)}.get(layout, (8, 2)), 3).double()
    if layout == "packed":
        input = pack_sequence([torch.randn(n, 3).double() for n in (2, 8, 5)], enforce_sorted=False)
    grads = []
    for module in (layer, twin):
        output, h_n = module(input)
        output = output.data if layout == "packed" else output
        (output.square().sum() + h_n.sum()).backward()
        grads.append([output, h_n] + [p.grad for p in module.parameters()])
    for a, b in zip(*grads, strict=True):
        assert distance(a, b) < 1e-14


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    """Return the bytes of distinct memory that backward needs besides the input and the parameters."""
    own = {p.untyped_storage().data_ptr() for p in [*layer.parameters(), x]}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        results = layer(x)
    size = sum(kept.values())
    del results
    return size


def test_the_memory_for_backward_grows_with_the_number_of_segments():
    steps, hidden, every = 20_000, 8, 200
    layer, x = LeakyRNN(4, hidden, nonlinearity="tanh", decay=0.9), torch.randn(steps, 1, 4)
    everything = kept_bytes(layer, x)
    assert everything > 2 * steps * hidden * 4  # at least the states and the values of f of all steps
    layer.checkpoint_every = every
    assert kept_bytes(layer, x) < 2 * steps // every * hidden * 4 + 4096
    layer(x)[0].square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_the_recomputation_in_backward_holds_one_segment_at_a_time():
    steps, every = 400, 20
    layer = LeakyRNN(4, 8, nonlinearity="tanh", decay=0.9, checkpoint_every=every)
    x, calls = torch.randn(steps, 1, 4), []

    class Calls(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "recurrence" in str(function):
                backward = "backward" in str(function)
                calls.append(("backward" if backward else "forward", len(args[2] if backward else args[0])))
            return function(*args, **(kwargs or {}))

    with Calls():
        output = layer(x)[0]
        assert calls == [("forward", steps)]
        calls.clear()
        output.sum().backward()
    # One segment is recomputed, differentiated and freed before the next one.
    assert calls == [("forward", every), ("backward", every)] * (steps // every)


@pytest.mark.parametrize("packed", [False, True])
def test_batched_gradients_and_transforms_pass_through_the_segments(packed):
    spec = {"form": "rate", "nonlinearity": "tanh", "reverse": False}
    arguments = arguments_of(9, packed=packed, **spec)
    sizes = arguments.pop("batch_sizes")
    found = []
    for every in (None, 4):

        def output(*tensors, every=every):
            named = dict(zip(arguments, tensors, strict=True))
            return projected_recurrence(**named, batch_sizes=sizes, **spec, checkpoint_every=every)[0]

        leaves = tuple(arguments.values())
        result = output(*leaves)
        many = torch.linspace(-1, 1, 2 * result.numel(), dtype=result.dtype).view(2, *result.shape)
        batched = torch.autograd.grad(result, leaves, many, is_grads_batched=True)
        transformed = torch.func.grad(lambda *x, f=output: f(*x).square().sum(), tuple(range(7)))(*leaves)
        found.append([*batched, *transformed])
    for a, b in zip(*found, strict=True):
        assert distance(a, b) < 1e-13


@pytest.mark.parametrize("every", [None, 3])
def test_gradients_do_not_go_past_the_arguments(every):
    """If one argument is computed from another, or is the same tensor, each path counts once."""
    layer = LeakyRNN(5, 5, nonlinearity="tanh", decay=0.5, dtype=torch.float64, checkpoint_every=every)
    x = torch.randn(7, 2, 5).double()
    parameters = list(layer.parameters())
    output, h_n = layer(x)
    carried = layer(x, h_n)[0].square().sum() + output.sum()
    weight = torch.randn(5, 5).double().div(2).requires_grad_()
    y = x.clone().requires_grad_()
    tied = projected_recurrence(y, None, weight, weight, None, 0.5, drive=y, checkpoint_every=every)[0]
    for result, leaves in ((carried, parameters), (tied.square().sum(), [weight, y])):
        plain = torch.autograd.grad(result, leaves, retain_graph=True)
        again = torch.autograd.grad(result, leaves, retain_graph=True, create_graph=True)
        batched = torch.autograd.grad(result, leaves, torch.ones(1).double(), True, is_grads_batched=True)
        for a, b, c in zip(plain, again, batched, strict=True):
            assert distance(b.detach(), a) < 1e-14
            assert distance(c[0], a) < 1e-14


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what is resident there")
def test_training_within_one_autocast_context_does_not_accumulate_memory():
    layer = LeakyRNN(1024, 1024, nonlinearity="tanh", decay=0.5, checkpoint_every=5)
    x = torch.randn(5, 1, 1024)
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(40):
            layer(x)[0].sum().backward()
            layer.zero_grad()
            if step == 9:
                before = resident()
    assert resident() - before < 20 * 2**20  # a copy of a matrix in bfloat16 has 2 MiB


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_over_many_segments_keep_their_digits_in_half_precision(dtype):
    steps, errors = 2000, {}
    torch.manual_seed(3)
    exact = LeakyRNN(4, 8, nonlinearity="sigmoid", decay=0.5).to(dtype)
    x = torch.randn(steps, 1, 4).to(dtype)
    grads = {}
    for every in ("float64", None, 1):
        layer = copy.deepcopy(exact)
        layer.checkpoint_every = None if every == "float64" else every
        if every == "float64":
            layer, x = layer.double(), x.double()
        layer(x)[0].sum().mul(1e-2).backward()
        grads[every], x = layer.weight_hh_l0.grad.double(), x.to(dtype)
    errors = {every: distance(grads[every], grads["float64"]) for every in (None, 1)}
    assert errors[1] < 2 * errors[None] + 1e-2


def test_a_layer_on_meta_gives_shapes():
    layer = LeakyRNN(3, 5, device="meta", checkpoint_every=3)
    output, _ = layer(torch.randn(4, 2, 3, device="meta"))
    output.sum().backward()
    assert output.shape == (4, 2, 5)
    assert layer.weight_hh_l0.grad.shape == (5, 5)


@pytest.mark.parametrize("every", [None, 2])
def test_errors_name_the_argument_with_and_without_checkpointing(every):
    x, w, u = torch.randn(3, 3), torch.randn(5, 3), torch.randn(5, 5)

    def call(**others):
        projected_recurrence(others.pop("input", x), None, w, u, None, 0.5, checkpoint_every=every, **others)

    for sizes in ([], [-1, 2], [[2, 1]]):
        with pytest.raises(ValueError, match=r"^batch_sizes must"):
            call(batch_sizes=torch.tensor(sizes, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^drive must be \[4, 2, 5\], .*, got \[2, 5\]"):
        call(input=torch.randn(4, 2, 3), drive=torch.randn(2, 5))


def test_autocast_applies_to_recomputed_segments():
    layer, x = LeakyRNN(4, 8, nonlinearity="tanh", decay=0.9), torch.randn(50, 3, 4)
    grads = []
    for every in (None, 50):
        layer.checkpoint_every = every
        with torch.autocast("cpu", torch.bfloat16):
            loss = layer(x)[0].square().mean()
        grads.append(torch.autograd.grad(loss, list(layer.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("reverse", [False, True])
def test_derivatives_of_every_mode_pass_through_the_segments(reverse):
    spec = {"form": "rate", "nonlinearity": "tanh", "reverse": reverse}
    arguments = arguments_of(8, packed=False, **spec)
    named = {name: x for name, x in arguments.items() if name != "batch_sizes"}
    tangents = [torch.randn_like(x) for x in named.values()]
    found = []
    for every in (None, 4):
        output, h_n = projected_recurrence(**arguments, **spec, checkpoint_every=every)
        grads = torch.autograd.grad(output.sin().sum() + h_n.sum(), list(named.values()), create_graph=True)
        product = sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))
        second = torch.autograd.grad(product, list(named.values()))
        with forward_ad.dual_level():
            moved = (
                forward_ad.make_dual(x.detach(), t) for x, t in zip(named.values(), tangents, strict=True)
            )
            duals = dict(zip(named, moved, strict=True))
            output, _ = projected_recurrence(**duals, **spec, checkpoint_every=every)
            found.append([*second, forward_ad.unpack_dual(output).tangent])
    for a, b in zip(*found, strict=True):
        assert distance(a, b) < 1e-12


def test_forward_allocates_little_besides_the_output():
    layer, x = LeakyRNN(4, 64, decay=0.9, checkpoint_every=50), torch.randn(2000, 4, 4)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = layer(x)[0]
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = list(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    size = output.numel() * output.element_size()
    assert size <= held[-1]
    assert max(held) < 1.2 * size


@pytest.mark.parametrize("with_drive", [False, True])  # each of the two operators
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_recomputed_tensors_are_freed_with_their_segment(nonlinearity, with_drive):
    every = 13
    layer = LeakyRNN(4, 8, nonlinearity=nonlinearity, decay=0.9, checkpoint_every=every)
    x, drive = torch.randn(10 * every, 3, 4), torch.randn(10 * every, 3, 8)

    def segments_alive() -> int:
        return sum(type(x) is Tensor and x.shape == (every, 3, 8) for x in gc.get_objects())

    before = segments_alive()
    loss = layer(x, drive=drive if with_drive else None)[1].sum()
    loss.backward()
    assert segments_alive() == before  # while the loss, and thus its graph, still exists


@pytest.mark.parametrize(
    ("every", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_an_invalid_number_of_steps_is_refused(every, error):
    layer = LeakyRNN(3, 5)
    with pytest.raises(error, match="checkpoint_every"):
        LeakyRNN(3, 5, checkpoint_every=every)
    layer.checkpoint_every = every
    with pytest.raises(error, match="checkpoint_every"):
        layer(torch.randn(4, 2, 3))
    with pytest.raises(error, match="steps"):
        truncated_bptt(layer, torch.randn(4, 2, 3), every)


def test_no_steps_give_an_empty_result():
    layer, hx = LeakyRNN(3, 5, checkpoint_every=4), torch.randn(1, 2, 5)
    output, h_n = layer(torch.randn(0, 2, 3), hx)
    assert output.shape == (0, 2, 5)
    assert torch.equal(h_n, hx)


# --- Truncated backpropagation -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["padded", "batch_first", "unbatched"])
@pytest.mark.parametrize("module", [LeakyRNN, nn.RNN])
def test_the_pieces_equal_the_outputs_of_one_call(module, layout):
    rnn = module(3, 5, 2, batch_first=layout == "batch_first", dtype=torch.float64)
    x = torch.randn(*{"unbatched": (10,), "batch_first": (2, 10)}.get(layout, (10, 2)), 3).double()
    hx = torch.randn(*((2, 5) if layout == "unbatched" else (2, 2, 5))).double()
    options = {"drive": torch.randn(*x.shape[:-1], 5).double()} if module is LeakyRNN else {}
    output, h_n = rnn(x, hx, **options)
    pieces = list(truncated_bptt(rnn, x, 4, hx, **options))
    time = 1 if layout == "batch_first" else 0
    assert [piece.shape[time] for piece, _ in pieces] == [4, 4, 2]
    assert distance(torch.cat([piece for piece, _ in pieces], time), output) < 1e-14
    assert distance(pieces[-1][1], h_n) < 1e-14


def test_gradients_stop_at_the_start_of_a_piece():
    layer = LeakyRNN(3, 5, decay=0.8, learn_h0=True)
    x = torch.randn(9, 2, 3, requires_grad=True)
    for i, (output, h_n) in enumerate(truncated_bptt(layer, x, 3)):
        x.grad = layer.h0.grad = None
        (output.sum() + h_n.sum()).backward()
        reached = x.grad.flatten(1).any(1).tolist()
        assert reached == [i == j // 3 for j in range(9)]
        assert (layer.h0.grad is not None) == (i == 0)


def test_training_between_the_pieces_is_allowed_and_learns():
    layer, readout = LeakyRNN(1, 16, nonlinearity="tanh", decay=0.5), nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *readout.parameters()], lr=0.01)
    wave = torch.sin(torch.arange(1001) * 0.3)[:, None, None]
    losses = []
    pieces = truncated_bptt(layer, wave[:-1], 20)
    for (output, _), target in zip(pieces, wave[1:].split(20), strict=True):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(readout(output), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.1 * sum(losses[:5])


def test_invalid_arguments_are_refused_at_the_call():
    x = torch.randn(4, 2, 3)
    with pytest.raises(ValueError, match="bidirectional"):
        truncated_bptt(LeakyRNN(3, 5, bidirectional=True), x, 2)
    with pytest.raises(TypeError, match="input must be a Tensor, got PackedSequence"):
        truncated_bptt(LeakyRNN(3, 5), pack_sequence([x[:, 0]]), 2)
    with pytest.raises(ValueError, match="drive must have the steps and rows"):
        truncated_bptt(LeakyRNN(3, 5), x, 2, drive=torch.randn(3, 2, 5))


def test_projected_recurrence_equals_projection_and_recurrence():
    arguments = arguments_of(5, packed=False, form="rate", nonlinearity="relu", reverse=False)
    pre = (
        nn.functional.linear(arguments["input"], arguments["weight_ih"], arguments["bias"])
        + arguments["drive"]
    )
    expected = functional.leaky_recurrence(pre, arguments["h0"], arguments["weight_hh"], arguments["decay"])
    for ours, theirs in zip(projected_recurrence(**arguments), expected, strict=True):
        assert torch.equal(ours, theirs)
