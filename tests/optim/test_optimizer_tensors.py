"""Parameters and gradients of all layouts and types, and the devices of the optimizer's own tensors."""

from __future__ import annotations

import pytest
import torch
from optimizer_helpers import one

from rnnkernels import ClippedAdamW, ClippedNesterov, _ops

CLASSES = [ClippedNesterov, ClippedAdamW]


class OwnParameter(torch.nn.Parameter):
    """Any subclass is handled like sharded parameters."""


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def with_gaps(x):
    return torch.stack([x, x], dim=-1)[..., 1]


LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "channels last": channels_last,
    "gaps": with_gaps,
    "gaps and channels last": lambda x: with_gaps(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("of_param", LAYOUTS)
@pytest.mark.parametrize("of_grad", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_layouts_do_not_change_results(cls, of_param, of_grad, dtype):
    values = torch.randn(2, 3, 5, 4).to(dtype)
    grad = torch.randn(2, 3, 5, 1).to(dtype).expand(values.shape)
    if of_grad != "expanded":
        grad = LAYOUTS[of_grad](grad)
    param, plain = (torch.nn.Parameter(x) for x in (LAYOUTS[of_param](values), values.clone()))
    strides = param.stride()
    optimizers = [cls([p], lr=0.1, max_norm=0.5, master_weights=True) for p in (param, plain)]
    for _ in range(3):
        param.grad, plain.grad = grad, grad.clone(memory_format=torch.contiguous_format)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(param, plain)
    assert param.stride() == strides
    for name, state in optimizers[0].state[param].items():
        assert torch.equal(state, optimizers[1].state[plain][name])


@pytest.mark.parametrize("kind", [torch.nn.Parameter, OwnParameter])
def test_lazily_negated_and_zero_tensor_gradients(kind):
    param = kind(torch.zeros(5))
    optimizer = ClippedNesterov([param], lr=1.0, momentum=0.0, max_norm=None)
    param.grad = torch._neg_view(torch.arange(5.0))
    optimizer.step()
    assert torch.equal(param.detach(), torch.arange(5.0))
    param.grad = torch._efficientzerotensor(5)
    optimizer.step()
    assert torch.equal(param.detach(), torch.arange(5.0))
    assert float(optimizer.last_grad_norm) == 0


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch wants the parameter's dtype")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_gradient_of_a_half_precision_parameter_keeps_its_digits(cls, dtype):
    start = torch.randn(700).to(dtype)
    param, wide = torch.nn.Parameter(start), torch.nn.Parameter(start.float())
    param.grad_dtype = torch.float32
    param.grad = wide.grad = torch.randn(700)
    states = []
    for p in (param, wide):
        optimizer = cls([p], lr=0.1, max_norm=0.5)
        optimizer.step()
        states.append(optimizer.state[p])
    assert torch.equal(param, wide.to(dtype))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("kind", [torch.nn.Parameter, OwnParameter])
def test_only_empty_tensors(cls, kind):
    param = kind(torch.zeros(0, 3))
    param.grad = torch.zeros(0, 3)
    optimizer = cls([param])
    optimizer.step()
    assert float(optimizer.last_grad_norm) == 0
    assert int(optimizer.taken_steps) == 1


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("kind", [torch.nn.Parameter, OwnParameter])
@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
def test_the_default_device_does_not_matter(cls, kind, norm_type):
    param, plain = (kind(torch.ones(3)) for _ in "ab")
    optimizer, judge = cls([param], norm_type=norm_type), cls([plain], norm_type=norm_type)
    for p in (param, plain):
        p.grad = torch.full((3,), 2.0)
    for _ in range(2):
        judge.step()
    with torch.device("meta"):
        optimizer.step()
        saved = optimizer.state_dict()
        for state in saved["state"].values():
            if "step" in state:
                state["step"] = 1
        optimizer = cls([param], norm_type=norm_type)
        optimizer.load_state_dict(saved)
        optimizer.step()
    assert torch.equal(param, plain)
    assert torch.equal(optimizer.last_grad_norm, judge.last_grad_norm)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_parameter_twice_in_a_group_raises_an_error(cls):
    first, second = (torch.nn.Parameter(torch.ones(3)) for _ in "ab")
    optimizer = cls([first])
    with (
        pytest.warns(UserWarning, match="duplicate parameters"),
        pytest.raises(ValueError, match=r"^params\[2\] of group 1 must not be there twice"),
    ):
        optimizer.add_param_group({"params": [second, torch.nn.Parameter(torch.ones(1)), second]})
    assert len(optimizer.param_groups) == 1


def test_a_sparse_gradient_of_a_parameter_subclass_raises_an_error():
    param = OwnParameter(torch.ones(2, 2))
    param.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(ValueError, match="must be dense, got layout Sparse"):
        ClippedNesterov([param]).step()


@pytest.mark.parametrize("cls", CLASSES)
def test_an_operator_with_lists_of_different_lengths_raises_an_error(cls, monkeypatch):
    """A direct call must not read past the end of a list."""
    _, optimizer = one()
    if cls is ClippedAdamW:
        param = optimizer.param_groups[0]["params"][0]
        optimizer = cls([param])
    name = "clipped_adamw_" if cls is ClippedAdamW else "clipped_nesterov_"
    operator, calls = getattr(_ops, name), []
    monkeypatch.setattr(_ops, name, lambda *args: calls.append(args))
    optimizer.step()
    (args,) = calls
    schema = operator.default._schema.arguments
    lists = [i for i, arg in enumerate(schema) if "[]" in str(arg.type) or "List" in str(arg.type)]
    assert len(lists) >= 8
    for i in lists:
        if schema[i].name != "on_device":  # may be empty
            shorter = [*args[:i], [], *args[i + 1 :]]
            with pytest.raises(ValueError, match=rf"must|{schema[i].name}"):
                operator(*shorter)
    operator(*args)
