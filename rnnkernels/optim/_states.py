"""The states of the parameters: whether they fit, and how saved ones are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rnnkernels.optim._arguments import compute_dtype


def name_of(groups: list[dict[str, Any]], i: int) -> str:
    """Return what a message calls parameter ``i`` of all groups."""
    index = 0
    while i >= len(groups[index]["params"]):
        i -= len(groups[index]["params"])
        index += 1
    name = f"'{groups[index]['param_names'][i]}' " if "param_names" in groups[index] else ""
    return f"parameter {name}(params[{i}] of group {index}, shape {list(groups[index]['params'][i].shape)})"


def forbid_capture(param: Tensor) -> None:
    """Raise RuntimeError if a graph is being captured on the device of ``param``, before a state is made."""
    if param.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the first step must be taken before a graph is captured: its states would be made again, and"
            " zero, by every replay"
        )


def check_states(
    groups: list[dict[str, Any]],
    states: Mapping[Tensor, dict[str, Tensor]],
    scalars: tuple[str, ...],
    home: torch.device,
) -> None:
    """Raise ValueError unless the states fit the parameters, which ``model.double()`` and the like convert.

    Args:
        groups: The optimizer's groups.
        states: The state of each parameter.
        scalars: Keys of the states whose values have one element and are on the device ``home``.
        home: The device of the record.
    """
    for i, param in enumerate(param for group in groups for param in group["params"]):
        if param.grad is None:
            continue
        for key, value in states.get(param, {}).items():
            of = f"the state '{key}' of {name_of(groups, i)}"
            is_scalar = key in scalars
            if not is_scalar and value.shape != param.shape:
                raise ValueError(
                    f"{of} must have its shape, got {list(value.shape)}: after a change of the shape,"
                    " del optimizer.state[param] lets the next step make a new state"
                )
            dtype = value.dtype if is_scalar else compute_dtype(param)
            device = home if is_scalar else param.device
            if value.dtype != dtype or value.device != device:
                raise ValueError(
                    f"{of} must be {dtype} on {device} for a parameter of {param.dtype}, got {value.dtype}"
                    f" on {value.device}: after a conversion of the model,"
                    " optimizer.load_state_dict(optimizer.state_dict()) converts the states"
                )


def check_saved_states(state_dict: dict[str, Any], names: tuple[str, ...], owner: str) -> None:
    """Raise ValueError unless each saved state has exactly these names, and ``"master"`` or not.

    Args:
        state_dict: As ``torch.optim.Optimizer.state_dict`` returns it.
        names: Keys of a parameter's state.
        owner: The optimizer's class, for the message.
    """
    for state in state_dict["state"].values():
        if not state:  # a mere look-up in torch's `state` makes an empty one
            continue
        wrong = [f"lacks '{name}'" for name in names if name not in state]
        wrong += [f"has '{name}'" for name in state if name not in (*names, "master")]
        if wrong:
            raise ValueError(
                f"state_dict must be that of a {owner}, whose parameters' states have"
                f" {', '.join(map(repr, names))}; here one {' and '.join(wrong)}"
            )


def loaded_state(saved: dict[str, Any], new: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the saved values with the keys, dtypes and devices of a new state.

    Args:
        saved: A parameter's state from a state dictionary: tensors, or numbers in old files.
        new: The parameter's state before its first step; its values are used for keys that ``saved`` lacks.
    """
    state = dict(new)
    for name, own in new.items():
        if name in saved:
            given = saved[name]
            if not isinstance(given, Tensor):
                given = torch.tensor(given, device=own.device)
            state[name] = given.detach().to(own.device, own.dtype, copy=True)
    return state
