"""Loading of saved optimizer states, parameter by parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_saved_states(state_dict: dict[str, Any], names: tuple[str, ...], owner: str) -> None:
    """Raise ValueError unless each saved state has exactly these names, and ``"master"`` or not.

    Args:
        state_dict: As ``torch.optim.Optimizer.state_dict`` returns it.
        names: Keys of a parameter's state.
        owner: The optimizer's class, for the message.
    """
    for state in filter(
        None, state_dict["state"].values()
    ):  # a look-up in torch's `state` makes an empty one
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
