"""Optimizers on devices without kernels: the composite of torch operations, here for CPU tensors."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optimizer_helpers import TOLERANCE, draw_gradients, make_groups, one, set_gradients, trees
from test_optimizer_edits import (  # noqa: F401  (the same tests, without kernels)
    test_a_diverged_parameter_can_be_restored,
    test_a_step_that_changes_nothing_keeps_what_was_written,
    test_a_step_with_master_weights_starts_from_what_was_written,
    test_a_written_parameter_may_have_any_layout,
    test_model_and_optimizer_are_loaded_in_any_order,
    test_small_updates_add_up_beside_elements_that_are_written,
)
from test_optimizer_nonfinite import (  # noqa: F401
    test_a_clip_coefficient_below_the_smallest_float_keeps_all_digits,
    test_a_first_step_that_is_skipped_leaves_zeros,
    test_a_loss_scale_of_zero_is_skipped,
    test_a_norm_of_huge_gradients_does_not_overflow,
    test_a_norm_of_tiny_gradients_does_not_underflow,
    test_a_skipped_step_changes_nothing,
    test_apply_does_what_torch_does,
    test_found_inf_always_skips,
    test_grad_scaler,
    test_raise_names_a_norm_beyond_float64_where_all_gradients_are_finite,
    test_raise_names_the_first_bad_parameter,
)
from test_optimizer_refusals import (  # noqa: F401
    test_a_model_that_is_converted_between_two_steps,
    test_a_parameter_whose_elements_share_memory_raises_an_error,
    test_a_parameter_with_a_new_shape_is_named,
    test_a_setting_out_of_range_at_a_step_is_named_and_nothing_changes,
    test_a_setting_that_is_a_string_at_a_step_is_named,
    test_a_state_on_another_device_is_named,
    test_a_state_that_lacks_a_key_raises_an_error,
    test_an_unknown_nonfinite_mode_at_a_step_is_named,
    test_max_norm_as_a_tensor,
    test_settings_may_be_numpy_scalars,
)
from test_optimizer_rules import (  # noqa: F401
    test_adamw_with_a_first_beta_of_zero_forgets_past_gradients,
    test_half_precision_computes_in_float32,
    test_mixed_dtypes_share_one_norm,
    test_steps_equal_the_reference_under_schedules,
)
from test_optimizer_states import (  # noqa: F401
    test_autograd_detects_the_in_place_update,
    test_deep_copy_and_pickle,
    test_loading_makes_or_drops_master_copies_as_configured,
    test_the_state_of_torch_adamw_can_be_loaded,
    test_training_continues_after_a_state_dict_round_trip,
    test_training_continues_after_from_sgd_and_to_sgd,
    test_without_a_gradient_there_is_no_state_and_no_change,
)
from test_optimizer_tensors import (  # noqa: F401
    test_a_float32_gradient_of_a_half_precision_parameter_keeps_its_digits,
    test_lazily_negated_and_zero_tensor_gradients,
    test_memory_layouts_do_not_change_results,
    test_only_empty_tensors,
    test_the_default_device_does_not_matter,
)
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from rnnkernels import ClippedAdamW, ClippedNesterov, _devices, _ops
from rnnkernels.optim import _base, _composite

CLASSES = [ClippedNesterov, ClippedAdamW]


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch):
    """No device has kernels, and the warning has been given."""
    monkeypatch.setattr(_devices, "_DEVICES", dict.fromkeys(_devices._DEVICES, ()))
    monkeypatch.setattr(_devices, "_warned", {_devices.OPTIMIZER_STEP})
    for name in ("clipped_nesterov_", "clipped_adamw_", "gradient_power_sum"):
        monkeypatch.setattr(_ops, name, None)


@pytest.fixture
def cuda_kernels(monkeypatch):
    """Pretend a build with CUDA kernels, and that no graph is captured."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(_devices, "_DEVICES", dict.fromkeys(_devices._DEVICES, ("cpu", "cuda")))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])
@given(trees, st.sampled_from([1.0, 1e3]))
def test_the_composite_power_sum_equals_the_kernels(p, tree, unit):
    params = [p for group in make_groups(tree, *TOLERANCE, torch.bfloat16, torch.float16) for p in group]
    grads = draw_gradients(tree, params, 0)
    if not any(grad is not None for grad in grads):
        return
    got = _composite.gradient_power_sum(grads, p, unit)
    wanted = torch.ops.rnnkernels.gradient_power_sum(grads, p, unit)
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", ["a gradient", "a state"])
def test_an_invalid_tensor_is_named_and_nothing_changes(kind):
    params = [torch.nn.Parameter(torch.ones(2, 2)) for _ in "ab"]
    optimizer = ClippedNesterov(params)
    set_gradients(params, [torch.ones(2, 2), torch.ones(2, 2)])
    optimizer.step()
    before = params[0].detach().clone()
    if kind == "a gradient":
        params[1].grad = torch.ones(2, 2).to_sparse()
        message = "the gradient of parameter 1 must be dense, got layout torch.sparse_coo"
    else:
        optimizer.state[params[1]] = {"velocity": torch.zeros(2, 2, dtype=torch.bfloat16)}
        message = r"the state 'velocity' of parameter \(params\[1\] of .* must be torch.float32 on cpu"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(params[0], before)


def test_there_is_one_warning(monkeypatch):
    monkeypatch.setattr(_devices, "_warned", set())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            _, optimizer = one()
            optimizer.step()
    assert [str(warning.message) for warning in seen] == [
        "rnnkernels has kernels for the CPU and for CUDA: tensors on cpu take a list of torch operations for"
        " a step of an optimizer, in place of one call"
    ]


# --- Fake CUDA tensors ------------------------------------------------------------------------------


def fake_params(*devices):
    params = [torch.nn.Parameter(torch.zeros(3, device=device)) for device in devices]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


@pytest.mark.parametrize("cls", CLASSES)
def test_the_scalars_of_a_step_are_on_the_device_of_the_kernels(cls, cuda_kernels, monkeypatch):
    calls = []
    monkeypatch.setattr(_base, "_PLAIN", frozenset((FakeTensor, torch.nn.Parameter)))
    for name in ("clipped_nesterov_", "clipped_adamw_"):
        monkeypatch.setattr(_ops, name, lambda *args: calls.append(args))
    with FakeTensorMode():
        (param,) = fake_params("cpu")
        optimizer = cls([param], lr=0.1)
        optimizer.step()
        assert optimizer._record.device.type == "cpu"
        (other,) = fake_params("cuda")
        optimizer.param_groups[0]["params"] = [other]  # as after moving a model
        optimizer.step()
    assert optimizer._record.device.type == "cuda"
    tensors = [x for arg in calls[1] for x in (arg if isinstance(arg, list) else [arg])]
    assert {x.device.type for x in tensors if isinstance(x, torch.Tensor)} == {"cuda"}
    assert len(calls) == 2


@pytest.mark.parametrize("cls", CLASSES)
def test_without_kernels_the_scalars_are_on_the_cpu(cls, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with FakeTensorMode():
        (param,) = fake_params("cuda")
        optimizer = cls([param])
        state = optimizer._states_of([param], [param.grad])[0]
    assert optimizer.last_grad_norm.device.type == "cpu"
    assert {name: x.device.type for name, x in state.items() if name == "step"}.items() <= {("step", "cpu")}
    assert all(state[name].device.type == "cuda" for name in cls.state_names)


def test_parameters_on_several_devices_raise_an_error():
    message = r"^params\[0\] of group 1 must be on the device of the others, cpu, got cuda:0"
    with FakeTensorMode():
        first, second = fake_params("cpu", "cuda")
        optimizer = ClippedNesterov([first])
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": [second]})
    assert len(optimizer.param_groups) == 1


def test_capturing_the_first_step_raises_an_error(cuda_kernels, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with FakeTensorMode():
        optimizer = ClippedNesterov(fake_params("cuda"))
        with pytest.raises(RuntimeError, match="the first step must be taken before a graph is captured"):
            optimizer.step()
