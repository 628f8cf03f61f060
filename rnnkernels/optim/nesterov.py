"""Nesterov's momentum with clipping by the global norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rnnkernels.optim._base import ClippedOptimizer, check_setting

__all__ = ["ClippedNesterov"]


class ClippedNesterov(ClippedOptimizer):
    """Clipping by the global norm and Nesterov's momentum in the variables of arXiv 1212.0901.

        c = min(1, max_norm / (norm + 1e-6)),   norm over all gradients of all groups
        g_t = c grad (+ weight_decay theta_{t-1})
        v_t = mu_{t-1} v_{t-1} - lr_t g_t
        theta_t = theta_{t-1} + mu_t mu_{t-1} v_{t-1} - (1 + mu_t) lr_t g_t

    ``mu_t`` is the group's momentum at this step and ``mu_{t-1}`` what it was at the last step taken.
    While lr and momentum stay the same this is ``torch.optim.SGD(nesterov=True)`` after
    ``clip_grad_norm_``, to rounding; where they change it follows the paper and torch does not
    (docs/optimizer.md). Gradients are read, never rewritten.

    Args:
        params: Tensors, named tensors or groups of them, as for every torch optimizer: float32,
            float64, bfloat16 or float16, of any shape, on one device, each with memory of its own. Half
            precision has float32 states.
        lr: At least 0. In a group, ``lr``, ``momentum``, ``max_norm`` and ``weight_decay`` may also be
            tensors of one element.
        momentum: In [0, 1).
        max_norm: More than 0; None or inf turns clipping off.
        norm_type: The p of the norm: positive, or inf.
        weight_decay: L2 penalty, added after clipping.
        nonfinite: What an infinite or NaN gradient does. ``"skip"``: nothing is updated, and
            ``skipped_steps`` counts. ``"raise"``: nothing is updated, and an error names the first
            such parameter. ``"apply"``: update, as torch does.
        maximize: Ascend instead.
        master_weights: Keep a float32 copy of each half-precision parameter and update that.

    ``state[param]`` has ``velocity`` (``v``), and ``master`` where asked for.

    Raises:
        ValueError: An argument is refused; the message names it.

    Source: Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901), section 3.5.
    """

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
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "max_norm": max_norm,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, norm_type, nonfinite, master_weights)

    def _settings(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return group["lr"], group["max_norm"], group["weight_decay"], group["momentum"]

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_setting("momentum", group["momentum"], 0, 1)

    def add_param_group(self, param_group: dict[str, Any]) -> None:  # noqa: D102
        super().add_param_group(param_group)
        # mu_{t-1}. Its first value does not matter: the velocity begins with zero.
        zero = torch.zeros((), dtype=torch.float64, device=self._record.device)
        self.param_groups[-1].setdefault("previous_momentum", zero)

    def _move_numbers(self, home: torch.device) -> None:
        super()._move_numbers(home)
        for group in self.param_groups:
            if "previous_momentum" in group:  # not yet while the group is added
                group["previous_momentum"] = group["previous_momentum"].to(home)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            previous = group["previous_momentum"]
            previous = torch.as_tensor(previous, dtype=torch.float64, device=self._record.device)
            group["previous_momentum"] = previous

    def _call(
        self, operators: Any, params: list[Tensor], states: list[dict[str, Tensor]], common: tuple[Any, ...]
    ) -> None:
        grads, *rest = common
        velocities = [state["velocity"] for state in states]
        previous = [group["previous_momentum"] for group in self.param_groups]
        masters = self._masters(params, states)
        operators.clipped_nesterov_(params, grads, velocities, masters, previous, *rest)

    @classmethod
    def from_sgd(
        cls, sgd: torch.optim.SGD, max_norm: float | Tensor | None = 1.0, **options: Any
    ) -> ClippedNesterov:
        """Take over from ``torch.optim.SGD(nesterov=True)``, in the middle of a training.

        torch's buffer leaves the learning rate out, so ``v = -lr buffer``, at the groups' present lr:
        the next step is the one that SGD would have made.

        Args:
            sgd: With ``nesterov=True`` (or momentum 0) and ``dampening=0`` in all groups.
            max_norm: As for the class.
            options: The class's keyword arguments ``norm_type``, ``nonfinite``, ``master_weights``.

        Raises:
            ValueError: ``sgd`` has another rule.
        """
        groups = []
        for number, group in enumerate(sgd.param_groups):
            if (group["momentum"] != 0 and not group["nesterov"]) or group["dampening"] != 0:
                raise ValueError(
                    f"sgd must have nesterov=True and dampening=0, got nesterov={group['nesterov']},"
                    f" dampening={group['dampening']} in group {number}"
                )
            kept = ("params", "lr", "momentum", "weight_decay", "maximize", "param_names", "initial_lr")
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
        """Hand over to ``torch.optim.SGD(nesterov=True)``; clipping is then the caller's again.

        ``buffer = -(mu_{t-1} / mu_t) v / lr`` with the groups' present momentum and lr, so that the
        next step of SGD is the one that this optimizer would have made.

        Args:
            options: Given to ``torch.optim.SGD``: ``fused``, ``foreach``.

        Raises:
            ValueError: lr is 0 in a group that has a velocity.
        """
        kept = ("params", "maximize", "param_names", "initial_lr")
        groups = [
            {name: group[name] for name in kept if name in group}
            | {name: float(group[name]) for name in ("lr", "momentum", "weight_decay")}
            | {"nesterov": float(group["momentum"]) != 0}
            for group in self.param_groups
        ]
        sgd = torch.optim.SGD(groups, **options)
        for number, (group, own) in enumerate(zip(sgd.param_groups, self.param_groups, strict=True)):
            for param in group["params"]:
                velocity = self.state.get(param, {}).get("velocity")
                if velocity is None or group["momentum"] == 0:
                    continue
                if group["lr"] == 0:
                    raise ValueError(f"lr must be positive to convert a velocity, got 0 in group {number}")
                factor = -float(own["previous_momentum"]) / group["momentum"] / group["lr"]
                sgd.state[param]["momentum_buffer"] = (velocity * factor).to(param.dtype)
        return sgd
