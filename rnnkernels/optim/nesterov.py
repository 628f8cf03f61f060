"""Nesterov momentum with clipping by the global norm.

    g_t = c grad (+ weight_decay theta_{t-1})
    v_t = mu_{t-1} v_{t-1} - lr_t g_t
    theta_t = theta_{t-1} + mu_t mu_{t-1} v_{t-1} - (1 + mu_t) lr_t g_t

(Bengio, Boulanger-Lewandowski and Pascanu 2012, arXiv 1212.0901, section 3.5.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnkernels.optim._arguments import check_setting
from rnnkernels.optim._base import ClippedOptimizer
from rnnkernels.optim._processes import ProcessGroup

__all__ = ["ClippedNesterov"]


# Settings of a group that SGD has under the same names.
_SHARED_KEYS = ("params", "param_names", "maximize", "initial_lr")


class ClippedNesterov(ClippedOptimizer):
    """Clip gradients by their global norm and update with Nesterov momentum, in one fused pass.

        c = min(1, max_norm / (norm + 1e-6)),   norm over all gradients of all groups
        g_t = c grad (+ weight_decay theta_{t-1})
        v_t = mu_{t-1} v_{t-1} - lr_t g_t
        theta_t = theta_{t-1} + mu_t mu_{t-1} v_{t-1} - (1 + mu_t) lr_t g_t

    ``mu_t`` is the group's momentum at this step, and ``mu_{t-1}`` its momentum at the last step taken.
    With constant lr and momentum the results are those of ``clip_grad_norm_`` and
    ``torch.optim.SGD(nesterov=True)``, up to rounding. With schedules this optimizer follows the paper,
    and torch does not (docs/optimizer.md). The gradients themselves are not changed.

        optimizer = rnnkernels.ClippedNesterov(model.parameters(), lr=0.1, momentum=0.9, max_norm=1.0)
        loss.backward()
        optimizer.step()

    Args:
        params: Tensors, named tensors or groups of them, as for every torch optimizer: float32,
            float64, bfloat16 or float16, of any shape, on one device, none sharing memory with another.
            For half precision, arithmetic and states are float32.
        lr: Learning rate, at least 0. In a group, ``lr``, ``momentum``, ``max_norm`` and
            ``weight_decay`` may also be tensors of one element.
        momentum: ``mu``, in [0, 1).
        max_norm: Largest norm of the gradients after clipping, positive. None or inf turns clipping off.
        norm_type: The p of the norm, ``(sum |g|^p)^(1/p)``: positive, or inf for ``max |g|``.
        weight_decay: Factor of the L2 penalty, at least 0; the penalty is added after clipping.
        nonfinite: What a step does if a gradient is infinite or NaN. ``"skip"``: update nothing and
            count the step in ``skipped_steps``. ``"raise"``: update nothing and raise an error that
            names the first such parameter. ``"apply"``: update, as torch does.
        maximize: Maximize the objective instead of minimizing it.
        master_weights: Keep a float32 copy of each half-precision parameter, and update that copy.

    ``state[param]`` has ``velocity`` (``v``, float32 or float64, of the parameter's shape) and, with
    ``master_weights``, ``master``.

    Raises:
        ValueError: An argument is invalid; the message names it.

    Source: Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901), section 3.5.
    """

    _operator_name = "clipped_nesterov_"
    state_names = ("velocity",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float | Tensor = 0.9,
        max_norm: float | Tensor | None = 1.0,
        *,
        norm_type: float = 2.0,
        weight_decay: float | Tensor = 0.0,
        nonfinite: str = "skip",
        maximize: bool = False,
        master_weights: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "max_norm": max_norm,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, norm_type, nonfinite, master_weights, process_group)

    def _settings(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return group["lr"], group["max_norm"], group["weight_decay"], group["momentum"]

    def _scalars(self, states: list[dict[str, Tensor]]) -> list[Tensor]:
        return [group["previous_momentum"] for group in self.param_groups]

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_setting("momentum", group["momentum"], 0, 1)

    def _init_group(self, group: dict[str, Any]) -> None:
        # mu_{t-1}. Its first value does not matter, because the first velocity is zero.
        zero = torch.zeros((), dtype=torch.float64, device=self._record.device)
        group.setdefault("previous_momentum", zero)

    def _move_scalars(self, device: torch.device) -> None:
        super()._move_scalars(device)
        for group in self.param_groups:
            group["previous_momentum"] = group["previous_momentum"].to(device)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            previous = group["previous_momentum"]
            previous = torch.as_tensor(previous, dtype=torch.float64, device=self._record.device)
            group["previous_momentum"] = previous

    @classmethod
    def from_sgd(
        cls, sgd: torch.optim.SGD, max_norm: float | Tensor | None = 1.0, **options: Any
    ) -> ClippedNesterov:
        """Return an optimizer that continues a training with ``torch.optim.SGD(nesterov=True)``.

        SGD's momentum buffer does not contain the learning rate, so ``v = -lr buffer`` with the groups'
        current lr. The next step is the one that SGD would have taken, up to rounding.

        Args:
            sgd: Has ``nesterov=True`` (or momentum 0) and ``dampening=0`` in all groups.
            max_norm: As for the class.
            options: Keyword arguments of the class: ``norm_type``, ``nonfinite``, ``master_weights``.

        Raises:
            ValueError: ``sgd`` has another update rule.
        """
        groups = []
        for index, group in enumerate(sgd.param_groups):
            if (group["momentum"] != 0 and not group["nesterov"]) or group["dampening"] != 0:
                raise ValueError(
                    f"sgd must have nesterov=True and dampening=0, got nesterov={group['nesterov']},"
                    f" dampening={group['dampening']} in group {index}"
                )
            kept = (*_SHARED_KEYS, "lr", "momentum", "weight_decay")
            groups.append({name: group[name] for name in kept if name in group})
        optimizer = cls(groups, max_norm=max_norm, **options)
        for group in optimizer.param_groups:
            group["previous_momentum"].fill_(group["momentum"])
            for param in group["params"]:
                buffer = sgd.state.get(param, {}).get("momentum_buffer")
                if buffer is not None:
                    state = optimizer._new_state(param)
                    state["velocity"].copy_(buffer).mul_(-float(group["lr"]))
                    optimizer.state[param] = state
        return optimizer

    def to_sgd(self, **options: Any) -> torch.optim.SGD:
        """Return a ``torch.optim.SGD(nesterov=True)`` that continues a training; the caller clips gradients.

        ``buffer = -(mu_{t-1} / mu_t) v / lr`` with the groups' current momentum and lr. The next step
        of SGD is the one that this optimizer would have taken, up to rounding.

        Args:
            options: Keyword arguments of ``torch.optim.SGD``: ``fused``, ``foreach``.

        Raises:
            ValueError: lr is 0 in a group that has a velocity.
        """
        groups = [
            {name: group[name] for name in _SHARED_KEYS if name in group}
            | {name: float(group[name]) for name in ("lr", "momentum", "weight_decay")}
            | {"nesterov": float(group["momentum"]) != 0}
            for group in self.param_groups
        ]
        sgd = torch.optim.SGD(groups, **options)
        for index, (group, own) in enumerate(zip(sgd.param_groups, self.param_groups, strict=True)):
            for param in group["params"]:
                velocity = self.state.get(param, {}).get("velocity")
                if velocity is None or group["momentum"] == 0:
                    continue
                if group["lr"] == 0:
                    raise ValueError(f"lr must be positive to convert a velocity, got 0 in group {index}")
                factor = -float(own["previous_momentum"]) / group["momentum"] / group["lr"]
                sgd.state[param]["momentum_buffer"] = (velocity * factor).to(param.dtype)
        return sgd
