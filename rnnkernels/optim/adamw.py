"""AdamW with clipping by the global norm.

    g_t = c grad
    m_t = m_{t-1} + (1 - b1) (g_t - m_{t-1});   s_t = b2 s_{t-1} + (1 - b2) g_t^2
    theta_t = (1 - lr wd) theta_{t-1} - lr / (1 - b1^t) m_t / (sqrt(s_t / (1 - b2^t)) + eps)

(Loshchilov and Hutter 2019, arXiv 1711.05101.)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rnnkernels.optim._arguments import check_setting
from rnnkernels.optim._base import ClippedOptimizer
from rnnkernels.optim._processes import ProcessGroup

__all__ = ["ClippedAdamW"]


class ClippedAdamW(ClippedOptimizer):
    """Clip gradients by their global norm and update with AdamW, in one fused pass.

        c = min(1, max_norm / (norm + 1e-6)),   norm over all gradients of all groups
        g_t = c grad
        m_t = m_{t-1} + (1 - b1) (g_t - m_{t-1});   s_t = b2 s_{t-1} + (1 - b2) g_t^2
        theta_t = (1 - lr wd) theta_{t-1} - lr / (1 - b1^t) m_t / (sqrt(s_t / (1 - b2^t)) + eps)

    The results are those of ``clip_grad_norm_`` and ``torch.optim.AdamW``, up to rounding. ``t`` counts
    the steps at which the parameter had a gradient, as in torch. The gradients themselves are not changed.

        optimizer = rnnkernels.ClippedAdamW(model.parameters(), lr=1e-3, max_norm=1.0)
        loss.backward()
        optimizer.step()

    Args:
        params: As for :class:`ClippedNesterov`.
        lr: Learning rate, at least 0. In a group, settings may be numbers or tensors of one element.
        betas: ``(b1, b2)``, both in [0, 1).
        eps: At least 0.
        max_norm: Largest norm of the gradients after clipping, positive. None or inf turns clipping off.
        norm_type: The p of the norm, ``(sum |g|^p)^(1/p)``: positive, or inf for ``max |g|``.
        weight_decay: ``wd``, decoupled: neither clipped nor scaled by the gradient's history. At least 0.
        nonfinite: ``"skip"``, ``"raise"`` or ``"apply"``, as for :class:`ClippedNesterov`.
        maximize: Maximize the objective instead of minimizing it.
        master_weights: Keep a float32 copy of each half-precision parameter, and update that copy.

    ``state[param]`` has ``step``, ``exp_avg`` (``m``) and ``exp_avg_sq`` (``s``) under torch's names, so
    the state dictionary of a ``torch.optim.AdamW`` can be loaded. With ``master_weights`` it also has
    ``master``.

    Raises:
        ValueError: An argument is invalid; the message names it.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101).
    """

    _operator_name = "clipped_adamw_"
    state_names = ("exp_avg", "exp_avg_sq")
    scalar_state_names = ("step",)

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
        process_group: ProcessGroup | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "max_norm": max_norm,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, norm_type, nonfinite, master_weights, process_group)

    def _settings(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return group["lr"], group["max_norm"], group["weight_decay"], *group["betas"], group["eps"]

    def _scalars(self, states: list[dict[str, Tensor]]) -> list[Tensor]:
        return [state["step"] for state in states]

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers, got {group['betas']!r}")
        for i, beta in enumerate(group["betas"]):
            check_setting(f"betas[{i}]", beta, 0, 1)
        check_setting("eps", group["eps"], 0)

    def _check_saved(self, state_dict: dict[str, Any]) -> None:
        super()._check_saved(state_dict)
        for index, group in enumerate(state_dict["param_groups"]):
            # The state dictionary of torch's Adam differs in this key only.
            if group.get("decoupled_weight_decay") is False and group["weight_decay"] != 0:
                raise ValueError(
                    "state_dict must be of a rule with decoupled weight decay, got weight_decay="
                    f"{group['weight_decay']} and decoupled_weight_decay=False in group {index}"
                )
            if group.get("amsgrad"):
                raise ValueError(f"state_dict must be of a rule without amsgrad, got it in group {index}")
