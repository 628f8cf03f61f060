"""The base of the optimizers: the global norm, clipping and an update rule in one operator call.

    norm = (sum over all gradients |g|^p)^(1/p)         c_group = min(1, max_norm / (norm + 1e-6))

The norm, the step counts and the decision to skip stay on the device, and a step does not read them on the
host. The exceptions are ``nonfinite="raise"``, parameters that are divided among processes, and devices
without kernels. A step collects its tensors anew and keeps no list of them, so replaced parameters, gradients
and states are seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # the public torch.compiler.disable imports Dynamo at once
from torch.nn import Parameter
from torch.optim import optimizer as torch_optimizer

from rnnkernels import _ops
from rnnkernels._devices import OPTIMIZER_STEP, has_kernels, warn_without_kernels
from rnnkernels.optim import _arguments, _decision, _processes, _states
from rnnkernels.optim._arguments import check_setting, compute_dtype
from rnnkernels.optim._decision import NORM, RAISES, SKIPPED, TAKEN

_PLAIN = frozenset((Parameter, Tensor))
_OF_ALL_GROUPS = ("norm_type", "nonfinite", "master_weights", "process_group")


def _operators_for(device: torch.device) -> Any:
    """Return the module of operators, or one that has functions with the same names and arguments."""
    if has_kernels(device, "clipped_nesterov_"):
        return _ops
    from rnnkernels.optim import _composite

    warn_without_kernels(device, OPTIMIZER_STEP, stacklevel=8)  # at the line that makes the optimizer
    return _composite


class ClippedOptimizer(torch.optim.Optimizer):
    """The base of :class:`ClippedNesterov` and :class:`ClippedAdamW`; it has no update rule."""

    # Tells torch.amp.GradScaler that step() uses grad_scale and found_inf; torch documents no other way.
    _step_supports_amp_scaling = True

    # --- Defined by an update rule ---------------------------------------------------------------

    _operator_name: str
    state_names: tuple[str, ...] = ()  # states with one value per element, keys of `optimizer.state[param]`
    scalar_state_names: tuple[str, ...] = ()  # states with one value per parameter

    def _settings(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """Return a group's settings in the operator's order: lr, max_norm, weight_decay, ..."""
        raise NotImplementedError

    def _scalars(self, states: list[dict[str, Tensor]]) -> list[Tensor]:
        """Return the scalars that the rule reads and writes, one per group or one per parameter."""
        raise NotImplementedError

    def _init_group(self, group: dict[str, Any]) -> None:
        """Make a new group's scalars, on the record's device."""

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError unless a group's settings are valid."""
        check_setting("lr", group["lr"], 0)
        check_setting("weight_decay", group["weight_decay"], 0)
        if group["max_norm"] is not None:
            check_setting("max_norm", group["max_norm"], 0, above=True)
        _arguments.check_bool("maximize", group["maximize"])

    # --- The optimizer ---------------------------------------------------------------------------

    norm_type: float
    nonfinite: str
    master_weights: bool
    process_group: _processes.ProcessGroup | None = None  # cannot be copied; a copy needs it assigned
    _record: Tensor  # see _decision.py; like all scalars of a step, on the device of the kernels
    _device: torch.device | None = None  # of the parameters at the last step; not saved
    _operators: Any = None  # for that device; not saved

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        norm_type: float,
        nonfinite: str,
        master_weights: bool,
        process_group: _processes.ProcessGroup | None,
    ) -> None:
        _arguments.check_norm_type(norm_type)
        _decision.check_nonfinite(nonfinite)
        _arguments.check_bool("master_weights", master_weights)
        _processes.check_process_group(process_group)
        self.norm_type = float(norm_type)
        self.nonfinite = nonfinite
        self.master_weights = bool(master_weights)
        self.process_group = _processes.group_of_zero() if process_group is None else process_group
        self._record = torch.zeros(_decision.RECORD_FIELDS, dtype=torch.float64, device="cpu")
        super().__init__(params, {name: _arguments.plain_number(value) for name, value in defaults.items()})

    # --- Groups, devices and states --------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as ``torch.optim.Optimizer.add_param_group`` does.

        Args:
            param_group: Has ``params``, and settings that differ from the optimizer's.

        Raises:
            ValueError: A setting or a parameter is invalid; the message names it.
        """
        if not isinstance(param_group, dict):
            raise ValueError(f"param_group must be a dict with 'params', got {type(param_group).__name__}")
        own = {}
        for name, value in param_group.items():
            if name not in _OF_ALL_GROUPS:
                own[name] = _arguments.plain_number(value)
            elif value != getattr(self, name):  # ZeroRedundancyOptimizer has every argument in its groups
                raise ValueError(f"{name} belongs to the whole optimizer, so a group cannot have its own")
        self._check_group({**self.defaults, **own})
        super().add_param_group(own)
        index = len(self.param_groups) - 1
        params = self.param_groups[index]["params"]
        try:
            of_all = (param.device for group in self.param_groups for param in group["params"])
            device = next(of_all, torch.device("cpu"))
            for i, param in enumerate(params):
                _arguments.check_param(f"params[{i}] of group {index}", param, device)
                if self.process_group is None:
                    _processes.check_whole(f"params[{i}] of group {index}", param)
            # Two threads would write to it at the same time.
            if len(set(params)) != len(params):
                again = next(i for i, param in enumerate(params) if param in set(params[:i]))
                raise ValueError(f"params[{again}] of group {index} must not be there twice")
        except ValueError:
            del self.param_groups[index]
            raise
        self._init_group(self.param_groups[index])
        self._move_to(device)

    def _move_to(self, device: torch.device) -> None:
        """Choose the operators for a device of parameters, and move the scalars to where they run."""
        self._device, self._operators = device, _operators_for(device)
        home = device if self._operators is _ops else torch.device("cpu")
        if self._record.device != home:
            self._move_scalars(home)

    def _move_scalars(self, device: torch.device) -> None:
        self._record = self._record.to(device)

    def _all_state_names(self) -> tuple[str, ...]:
        return (*self.scalar_state_names, *self.state_names)

    def _new_state(self, param: Tensor) -> dict[str, Tensor]:
        """Return a parameter's state before its first step."""
        dtype = compute_dtype(param)
        state = {
            name: torch.zeros((), dtype=torch.float32, device=self._record.device)
            for name in self.scalar_state_names
        }
        state |= {name: torch.zeros_like(param, dtype=dtype).detach() for name in self.state_names}
        if self.master_weights and param.dtype != dtype:
            state["master"] = param.detach().to(dtype)
        return state

    def _master_of(self, param: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Return the master copy of a parameter whose state has none: the parameter itself, or a new copy.

        A parameter may have been converted to half precision since its state was made.
        """
        if param.dtype == compute_dtype(param):
            return param
        _states.forbid_capture(param)
        state["master"] = param.detach().to(compute_dtype(param))
        return state["master"]

    def _states_of(self, params: list[Tensor], grads: list[Tensor | None]) -> list[dict[str, Tensor]]:
        """Return the state of each parameter; make the states of those that have their first gradient."""
        known = cast("dict[Tensor, dict[str, Tensor]]", self.state)
        # Usually all states exist, in the order of the parameters, and no look-up by hash is needed.
        if len(known) == len(params) and all(map(is_, known, params)) and all(known.values()):
            return list(known.values())
        states = []
        names = (*self._all_state_names(), "master")
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            if grad is not None and not known.get(param):
                _states.forbid_capture(param)
                if self.process_group is None:  # the model may have been wrapped after the constructor
                    _processes.check_whole(_states.name_of(self.param_groups, i), param)
                known[param] = self._new_state(param)
            # Without a gradient and a state: a placeholder, never read, that keeps the indices aligned.
            states.append(known.get(param) or dict.fromkeys(names, param))
        return states

    # --- The step --------------------------------------------------------------------------------

    # Dynamo would compile it again for every new learning rate, around a call that it cannot change.
    @_disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Clip by the norm of all gradients and update all parameters. Gradients are not changed.

        Args:
            closure: Computes the loss again and returns it; called once, before the step.

        Returns:
            The result of ``closure``, or None.

        Raises:
            FloatingPointError: ``nonfinite="raise"``, and a gradient is infinite or NaN, or the norm
                overflows float64. Nothing was changed.
            ValueError: A gradient is sparse or does not fit its parameter, or a setting is invalid.
                Nothing was changed.
        """
        given = () if closure is None else (closure,)
        return self._hooked_step(*given) if self._has_hooks() else self._step(*given)

    # torch wraps every other step in a profiler's record, which takes a noticeable part of a small step.
    step.hooked = True  # type: ignore[attr-defined]

    def _has_hooks(self) -> bool:
        """Return whether torch must call hooks or a profiler around the step.

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
        for group in groups[1:]:
            params = params + group["params"]
            ends.append(len(params))
        device = params[0].device if params else self._record.device
        if device != self._device:
            self._move_to(device)
        if self._operators is not _ops:
            self._check_groups()
        grads = [param.grad for param in params]
        states = self._states_of(params, grads)
        masters = params
        if self.master_weights:
            masters = [
                state["master"] if "master" in state else self._master_of(param, state)
                for param, state in zip(params, states, strict=True)
            ]
        found_inf = getattr(self, "found_inf", None)
        norm = sharded = None
        if self.process_group is not None or not _PLAIN.issuperset(map(type, params)):
            from rnnkernels.optim import _sharded

            sharded = _sharded.ShardedGradients(grads, params, self._operators, self.process_group)
            norm, found_inf = sharded.norm(self.norm_type, found_inf)
            params, masters = ([_sharded.local(x) for x in tensors] for tensors in (params, masters))
            grads = sharded.local
            states = [{name: _sharded.local(x) for name, x in state.items()} for state in states]
        self._call_operator(params, grads, states, masters, ends, found_inf, norm)
        if self.nonfinite == "raise" and bool(self._record[RAISES]):
            self._raise_nonfinite(sharded.first_nonfinite() if sharded else _decision.first_nonfinite(grads))
        return loss

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)

    def _call_operator(
        self,
        params: list[Tensor],
        grads: list[Tensor | None],
        states: list[dict[str, Tensor]],
        masters: list[Tensor],
        group_ends: list[int],
        found_inf: Tensor | None,
        norm: Tensor | None,
    ) -> None:
        """Call the rule's operator; csrc/binding/operators.cpp describes the arguments."""
        numbers, tensors, maximize = [], [], []
        for group in self.param_groups:
            maximize.append(group["maximize"])
            for value in self._settings(group):
                is_tensor = isinstance(value, Tensor)
                tensors.append(value if is_tensor else None)
                numbers.append(0.0 if is_tensor else math.inf if value is None else value)
        if not any(value is not None for value in tensors):
            tensors = []
        try:
            getattr(self._operators, self._operator_name)(
                params, grads, *([state[name] for state in states] for name in self.state_names), masters,
                self._scalars(states), group_ends, numbers, tensors, maximize, self._record, self.norm_type,
                self.nonfinite, getattr(self, "grad_scale", None), found_inf, norm,
            )  # fmt: skip
        except KeyError as missing:
            raise ValueError(
                f"a parameter's state must have {', '.join(self._all_state_names())}, one lacks {missing}"
            ) from None
        except (RuntimeError, ValueError) as error:
            # The operator does not say how to convert a state; nor torch, which setting is not a number.
            _states.check_states(self.param_groups, self.state, self.scalar_state_names, self._record.device)
            if isinstance(error, RuntimeError):
                self._check_groups()
            raise

    def _check_groups(self) -> None:
        for group in self.param_groups:
            self._check_group(group)

    def _raise_nonfinite(self, first: int | None) -> None:
        """Raise FloatingPointError that names parameter ``first``, or the norm if no process has one."""
        message = None
        if first is not None:
            message = f"the gradient of {_states.name_of(self.param_groups, first)} must be finite"
        if self.process_group is not None:
            from rnnkernels.optim import _sharded

            message = _sharded.first_message(message, self.process_group)
        if message is None:
            message = f"the norm of the gradients must be finite, got {float(self._record[NORM])}"
        raise FloatingPointError(f"{message}; nothing was updated")

    # --- Results of the steps --------------------------------------------------------------------

    @property
    def last_grad_norm(self) -> Tensor:
        """The norm of all gradients at the last step, before clipping: a float64 scalar tensor, a copy.

        It and the counts below are on the parameters' device, or on the CPU if that device has no kernels.
        """
        return self._record[NORM].clone()

    @property
    def skipped_steps(self) -> Tensor:
        """The number of skipped steps: an int64 scalar tensor."""
        return self._record[SKIPPED].to(torch.int64)

    @property
    def taken_steps(self) -> Tensor:
        """The number of steps taken: an int64 scalar tensor."""
        return self._record[TAKEN].to(torch.int64)

    # --- Saving and loading ----------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        own = ("norm_type", "nonfinite", "master_weights", "_record")
        group = None if self.process_group is None else _processes.NOT_COPIED
        state = super().__getstate__() | {name: getattr(self, name) for name in own}
        return state | {"process_group": group}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as ``torch.optim.Optimizer.state_dict`` does, with the record under ``"record"``.

        The record is a float64 tensor ``[4]``: the norm of the last step, the numbers of skipped and of taken
        steps, and whether the last step raised an error.
        """
        return {**super().state_dict(), "record": self._record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state that another optimizer of this class saved on any device.

        States stay float32 or float64, where ``torch.optim.Optimizer`` would give them the dtype of a
        bfloat16 parameter. Missing keys of a group keep their current values. With ``master_weights``, a
        master copy that was not saved is made from the parameter.

        Args:
            state_dict: Result of :meth:`state_dict`.

        Raises:
            ValueError: The states are those of another update rule.
        """
        final: dict[str, Any] = {}
        before = self.param_groups

        def check_and_keep(_: Any, given: dict[str, Any]) -> None:
            self._check_saved(given)
            final.update(given)

        # Registered last, so that it gets the dictionary as the user's own hooks leave it.
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
                self.state[param] = _states.loaded_state(saved, self._new_state(param))
        for group, old in zip(self.param_groups, before, strict=True):
            for name, value in old.items():
                group.setdefault(name, value)
        if "record" in final:
            self._record.copy_(final["record"])

    def _check_saved(self, state_dict: dict[str, Any]) -> None:
        """Raise ValueError unless the saved states are those of this update rule."""
        _states.check_saved_states(state_dict, self._all_state_names(), type(self).__name__)
