"""What the optimizers have in common: clip by the global norm, then a rule, in one operator.

    norm = (sum over all gradients |g|^p)^(1/p)         c_group = min(1, max_norm / (norm + 1e-6))

The norm, the counts and the decision to skip stay on the device: a step reads none of them (except with
``nonfinite="raise"``, for the norm of parameters that are spread over processes, and on devices without
kernels). No list of tensors outlives a step, so none can be stale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # the public torch.compiler.disable imports Dynamo at once
from torch.nn import Parameter
from torch.optim import optimizer as torch_optimizer

from rnnkernels import _ops
from rnnkernels._checks import has_kernels

NONFINITE = ("skip", "raise", "apply")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_PLAIN = frozenset((Parameter, Tensor))


def check_setting(
    name: str, value: Any, least: float, below: float = math.inf, *, above: bool = False
) -> None:
    """Refuse a number outside ``[least, below)``, or above: ``(least, below]``; a tensor has one element.

    The value of a tensor is only looked at where that needs no synchronisation, on the CPU.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be a number or have one element, got shape {list(value.shape)}")
        if value.device.type != "cpu":
            return
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not (least < number <= below if above else least <= number < below):
        interval = f"({least:g}, {below:g}]" if above else f"[{least:g}, {below:g})"
        raise ValueError(f"{name} must lie in {interval}, got {value!r}")


def _check_param(name: str, param: Any, device: torch.device) -> None:
    if not isinstance(param, Tensor):
        return  # torch's own message
    if param.device.type == "meta":
        raise ValueError(f"{name} must have memory, got a tensor on the meta device: materialize it first")
    if param.is_complex():
        raise ValueError(f"{name} must be real, got {param.dtype}: torch.view_as_real gives the two parts")
    if param.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got layout {param.layout}")
    if param.dtype not in _DTYPES:
        raise ValueError(f"{name} must be float32, float64, bfloat16 or float16, got {param.dtype}")
    if param.device != device:
        raise ValueError(f"{name} must be on the device of the others, {device}, got {param.device}")


def _operators_for(device: torch.device) -> Any:
    """The operators' module, or one with functions of the same names and arguments."""
    if has_kernels(device, "clipped_nesterov_"):
        return _ops
    from rnnkernels.optim import _composite

    _composite.warn_once(device)
    return _composite


def _first_not_finite(grads: list[Tensor | None]) -> int | None:
    bad = (i for i, grad in enumerate(grads) if grad is not None and not bool(torch.isfinite(grad).all()))
    return next(bad, None)


class ClippedOptimizer(torch.optim.Optimizer):
    """The base of :class:`ClippedNesterov` and :class:`ClippedAdamW`; it has no rule of its own."""

    # torch.amp.GradScaler leaves grad_scale and found_inf to step(); torch documents no other way to say so.
    _step_supports_amp_scaling = True

    state_names: tuple[str, ...] = ()  # the rule's numbers an element, as in `optimizer.state[param]`

    norm_type: float
    nonfinite: str
    master_weights: bool
    # float64 [norm, steps skipped, steps taken, whether to raise]; it and the other numbers of a step are
    # where the parameters' kernels can write them
    _record: Tensor
    _at: torch.device | None = None  # where the last step was, not saved
    _operators: Any = None  # and by what

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        norm_type: float,
        nonfinite: str,
        master_weights: bool,
    ) -> None:
        if isinstance(norm_type, bool) or not isinstance(norm_type, (int, float)) or not norm_type > 0:
            raise ValueError(f"norm_type must be a positive number or inf, got {norm_type!r}")
        if nonfinite not in NONFINITE:
            raise ValueError(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {nonfinite!r}")
        if not isinstance(master_weights, bool):
            raise ValueError(f"master_weights must be True or False, got {master_weights!r}")
        self.norm_type = float(norm_type)
        self.nonfinite = nonfinite
        self.master_weights = master_weights
        self._record = torch.zeros(4, dtype=torch.float64, device="cpu")
        super().__init__(params, defaults)

    # --- What a rule brings ----------------------------------------------------------------------

    def _settings(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """The fields of one group in the operator's order: lr, max_norm, weight_decay, ..."""
        raise NotImplementedError

    def _check_group(self, group: dict[str, Any]) -> None:
        check_setting("lr", group["lr"], 0)
        check_setting("weight_decay", group["weight_decay"], 0)
        max_norm = group["max_norm"]
        if max_norm is not None:
            check_setting("max_norm", max_norm, 0, above=True)
        if not isinstance(group["maximize"], bool):
            raise ValueError(f"maximize must be True or False, got {group['maximize']!r}")

    def _call(
        self, operators: Any, params: list[Tensor], states: list[dict[str, Tensor]], common: tuple[Any, ...]
    ) -> None:
        raise NotImplementedError

    # --- Groups and states -----------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim.Optimizer`` does, with settings of its own where it has any.

        Raises:
            ValueError: A setting or a parameter is refused; the message names it.
        """
        if not isinstance(param_group, dict):
            raise ValueError(f"param_group must be a dict with 'params', got {type(param_group).__name__}")
        for name in ("norm_type", "nonfinite", "master_weights"):
            if name in param_group:
                raise ValueError(f"{name} belongs to the whole optimizer, so a group cannot have its own")
        self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        number = len(self.param_groups) - 1
        params = self.param_groups[number]["params"]
        try:
            device = self._device()
            for i, param in enumerate(params):
                _check_param(f"params[{i}] of group {number}", param, device)
            # Two threads would write to it at once.
            if len(set(params)) != len(params):
                again = next(i for i, param in enumerate(params) if param in set(params[:i]))
                raise ValueError(f"params[{again}] of group {number} must not be there twice")
        except ValueError:
            del self.param_groups[number]
            raise
        self._follow(device)

    def _device(self) -> torch.device:
        """That of the first parameter, and of all of them."""
        of_all = (param.device for group in self.param_groups for param in group["params"])
        return next(of_all, torch.device("cpu"))

    def _follow(self, device: torch.device) -> None:
        """Take the numbers of a step to where the parameters are now, and those operators that run there."""
        self._at, self._operators = device, _operators_for(device)
        home = device if self._operators is _ops else torch.device("cpu")
        if self._record.device != home:
            self._move_numbers(home)

    def _move_numbers(self, home: torch.device) -> None:
        self._record = self._record.to(home)

    def _new_state(self, param: Tensor) -> dict[str, Tensor]:
        number = torch.float64 if param.dtype == torch.float64 else torch.float32
        state = {name: torch.zeros_like(param, dtype=number).detach() for name in self.state_names}
        if self.master_weights and param.dtype != number:
            state["master"] = param.detach().to(number)
        return state

    def _states_of(self, params: list[Tensor], grads: list[Tensor | None]) -> list[dict[str, Tensor]]:
        known = cast("dict[Tensor, dict[str, Tensor]]", self.state)
        # Usually the states are all there, in the parameters' order: no look-up by hash then.
        if len(known) == len(params) and all(map(is_, known, params)) and all(known.values()):
            return list(known.values())
        states = []
        for param, grad in zip(params, grads, strict=True):
            if grad is not None and not known.get(param):
                if param.is_cuda and torch.cuda.is_current_stream_capturing():
                    raise RuntimeError(
                        "the first step must be taken before a graph is captured: its states would be made"
                        " again, and zero, by every replay"
                    )
                known[param] = self._new_state(param)
            # Whoever has neither gradient nor state is not looked at; its place is only kept.
            states.append(known[param] if param in known else dict.fromkeys(self._all_names(), param))
        return states

    def _all_names(self) -> tuple[str, ...]:
        return self.state_names

    # --- The step --------------------------------------------------------------------------------

    # Traced, it would be compiled again for every new learning rate, around a call that stays as it is.
    @_disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Clip by the norm of all gradients and update all parameters. Gradients are not changed.

        Args:
            closure: Computes the loss again and returns it; called once, before the step.

        Returns:
            What ``closure`` returned.

        Raises:
            FloatingPointError: ``nonfinite="raise"``, and a gradient is infinite or NaN, or their norm is
                beyond float64; nothing was changed.
            ValueError: A gradient is sparse, or does not fit its parameter, or a setting is refused;
                nothing was changed.
        """
        given = () if closure is None else (closure,)
        return self._watched_step(*given) if self._is_watched() else self._step(*given)

    # torch wraps every other step in a profiler's record, whose time a small step feels.
    step.hooked = True  # type: ignore[attr-defined]

    def _is_watched(self) -> bool:
        """Whether there are hooks, or a profiler, for torch to call around the step.

        torch has public functions to register hooks, but none that tells whether there are any.
        """
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or torch._C._autograd._profiler_enabled()
        )

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        params: list[Tensor] = groups[0]["params"]
        ends = [len(params)]
        numbers, tensors, maximize = [], [], []
        for group in groups:
            if group is not groups[0]:
                params = params + group["params"]
                ends.append(len(params))
            maximize.append(group["maximize"])
            for value in self._settings(group):
                is_tensor = isinstance(value, Tensor)
                tensors.append(value if is_tensor else None)
                numbers.append(0.0 if is_tensor else math.inf if value is None else value)
        if not any(value is not None for value in tensors):
            tensors = []
        device = params[0].device if params else self._record.device
        if device != self._at:
            self._follow(device)
        operators = self._operators
        if operators is not _ops:
            for group in groups:
                self._check_group(group)
        grads = [param.grad for param in params]
        states = self._states_of(params, grads)
        norm = spread = None
        if not _PLAIN.issuperset(map(type, params)):
            from rnnkernels.optim import _sharded

            spread = _sharded.Gradients(grads, params, operators)
            norm, grads = spread.norm(self.norm_type), spread.local
            params = [_sharded.local(param) for param in params]
            states = [{name: _sharded.local(x) for name, x in state.items()} for state in states]
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        common = (ends, numbers, tensors, maximize, self._record, self.norm_type, self.nonfinite)
        try:
            self._call(operators, params, states, (grads, *common, scale, found_inf, norm))
        except KeyError as missing:
            raise ValueError(
                f"a parameter's state must have {', '.join(self._all_names())}, one lacks {missing}"
            ) from None
        except RuntimeError:
            for group in groups:  # torch does not name a setting that is no number
                self._check_group(group)
            raise
        if self.nonfinite == "raise" and bool(self._record[3]):
            self._raise_nonfinite(spread.first_not_finite() if spread else _first_not_finite(grads))
        return loss

    _watched_step = torch.optim.Optimizer.profile_hook_step(_step)

    def _masters(self, params: list[Tensor], states: list[dict[str, Tensor]]) -> list[Tensor]:
        if not self.master_weights:
            return params
        return [state.get("master", param) for param, state in zip(params, states, strict=True)]

    def _raise_nonfinite(self, first: int | None) -> None:
        if first is None:  # all are finite
            norm = float(self._record[0])
            raise FloatingPointError(
                f"the norm of the gradients must be finite, got {norm}; nothing was updated"
            )
        number, i = 0, first
        while i >= len(self.param_groups[number]["params"]):
            i -= len(self.param_groups[number]["params"])
            number += 1
        group = self.param_groups[number]
        name = f"'{group['param_names'][i]}' (" if "param_names" in group else "("
        raise FloatingPointError(
            f"the gradient of parameter {name}params[{i}] of group {number}, shape"
            f" {list(group['params'][i].shape)}) must be finite; nothing was updated"
        )

    # --- What a step leaves behind ---------------------------------------------------------------

    @property
    def last_grad_norm(self) -> Tensor:
        """The norm before clipping of the last step: a float64 scalar tensor, a copy.

        Like the counts below, on the parameters' device, or on the CPU where that has no kernels.
        """
        return self._record[0].clone()

    @property
    def skipped_steps(self) -> Tensor:
        """How many steps were skipped: an int64 scalar tensor."""
        return self._record[1].to(torch.int64)

    @property
    def taken_steps(self) -> Tensor:
        """How many steps were taken: an int64 scalar tensor."""
        return self._record[2].to(torch.int64)

    # --- Saving and loading ----------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        own = ("norm_type", "nonfinite", "master_weights", "_record")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def state_dict(self) -> dict[str, Any]:
        """As ``torch.optim.Optimizer``'s, with the counts of steps under ``"record"``."""
        return {**super().state_dict(), "record": self._record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what another optimizer of this class saved, from whatever device.

        States stay float32 (or float64), where ``torch.optim.Optimizer`` would give them the dtype of
        a bfloat16 parameter. Settings that the saved groups lack stay as they are, and a master copy
        that is asked for and was not saved is made from the parameter.

        Raises:
            ValueError: The states are another rule's.
        """
        final: dict[str, Any] = {}
        before = self.param_groups

        def check_and_keep(_: Any, given: dict[str, Any]) -> None:
            self._check_saved(given)
            final.update(given)

        # Registered last, so that it sees what the user's own hooks have made of the dictionary.
        handle = self.register_load_state_dict_pre_hook(check_and_keep)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        saved_ids = [i for group in final["param_groups"] for i in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for saved_id, param in zip(saved_ids, params, strict=True):
            saved = final["state"].get(saved_id)
            if saved:
                self.state[param] = self._loaded(param, saved)
        for group, old in zip(self.param_groups, before, strict=True):
            for name, value in old.items():
                group.setdefault(name, value)
        if "record" in final:
            self._record.copy_(final["record"])

    def _loaded(self, param: Tensor, saved: dict[str, Any]) -> dict[str, Tensor]:
        """A state of this optimizer's kind, dtypes and devices, with copies of the saved numbers."""
        state = self._new_state(param)
        for name, own in state.items():
            if name in saved:
                given = saved[name]
                if not isinstance(given, Tensor):
                    given = torch.tensor(given, device=own.device)
                state[name] = given.detach().to(own.device, own.dtype, copy=True)
        return state

    def _check_saved(self, state_dict: dict[str, Any]) -> None:
        names = self._all_names()
        for state in filter(None, state_dict["state"].values()):  # torch makes empty ones of look-ups
            wrong = [f"lacks '{name}'" for name in names if name not in state]
            wrong += [f"has '{name}'" for name in state if name not in (*names, "master")]
            if wrong:
                raise ValueError(
                    f"state_dict must be that of a {type(self).__name__}, whose parameters' states have"
                    f" {', '.join(map(repr, names))}; here one {' and '.join(wrong)}"
                )
