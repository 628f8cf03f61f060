"""AdamW with clipping by the global norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnkernels.optim._base import ClippedOptimizer, check_setting

__all__ = ["ClippedAdamW"]


class ClippedAdamW(ClippedOptimizer):
    """Clipping by the global norm and AdamW, on the engine of :class:`ClippedNesterov`.

        c = min(1, max_norm / (norm + 1e-6)),   norm over all gradients of all groups
        g_t = c grad
        m_t = m_{t-1} + (1 - b1) (g_t - m_{t-1});   s_t = b2 s_{t-1} + (1 - b2) g_t^2
        theta_t = (1 - lr wd) theta_{t-1} - lr / (1 - b1^t) m_t / (sqrt(s_t / (1 - b2^t)) + eps)

    Equal to ``torch.optim.AdamW`` after ``clip_grad_norm_``, to rounding. ``t`` counts the steps that
    a parameter took part in, as in torch.

    Args:
        params: As for :class:`ClippedNesterov`.
        lr: At least 0. In a group, settings may be numbers or tensors of one element.
        betas: Both in [0, 1).
        eps: At least 0.
        max_norm: More than 0; None or inf turns clipping off.
        norm_type: The p of the norm: positive, or inf.
        weight_decay: Decoupled, so it is neither clipped nor scaled by the gradient's history.
        nonfinite: ``"skip"``, ``"raise"`` or ``"apply"``, as for :class:`ClippedNesterov`.
        maximize: Ascend instead.
        master_weights: Keep a float32 copy of each half-precision parameter and update that.

    ``state[param]`` has ``step``, ``exp_avg`` (``m``) and ``exp_avg_sq`` (``s``) under torch's names, so
    the state dictionary of a ``torch.optim.AdamW`` can be loaded.

    Raises:
        ValueError: An argument is refused; the message names it.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101).
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        max_norm: float | Tensor | None = 1.0,
        *,
        norm_type: float = 2.0,
        weight_decay: float | Tensor = 1e-2,
        nonfinite: str = "skip",
        maximize: bool = False,
        master_weights: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "max_norm": max_norm,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, norm_type, nonfinite, master_weights)

    def _settings(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return group["lr"], group["max_norm"], group["weight_decay"], *group["betas"], group["eps"]

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers, got {group['betas']!r}")
        for i, beta in enumerate(group["betas"]):
            check_setting(f"betas[{i}]", beta, 0, 1)
        check_setting("eps", group["eps"], 0)

    def _new_state(self, param: Tensor) -> dict[str, Tensor]:
        step = torch.zeros((), dtype=torch.float32, device=self._record.device)
        return {"step": step, **super()._new_state(param)}

    def _all_names(self) -> tuple[str, ...]:
        return ("step", *self.state_names)

    def _check_saved(self, state_dict: dict[str, Any]) -> None:
        super()._check_saved(state_dict)
        for number, group in enumerate(state_dict["param_groups"]):
            # What torch's Adam saves looks the same but for this.
            if group.get("decoupled_weight_decay") is False and group["weight_decay"] != 0:
                raise ValueError(
                    "state_dict must be of a rule with decoupled weight decay, got weight_decay="
                    f"{group['weight_decay']} and decoupled_weight_decay=False in group {number}"
                )
            if group.get("amsgrad"):
                raise ValueError(f"state_dict must be of a rule without amsgrad, got it in group {number}")

    def _call(
        self, operators: Any, params: list[Tensor], states: list[dict[str, Tensor]], common: tuple[Any, ...]
    ) -> None:
        grads, *rest = common
        averages = ([state[name] for state in states] for name in self.state_names)
        steps = [state["step"] for state in states]
        operators.clipped_adamw_(params, grads, *averages, self._masters(params, states), steps, *rest)
