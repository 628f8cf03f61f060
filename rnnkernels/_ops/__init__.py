"""The registered operators. No other module uses ``torch.ops``.

``spec`` has their arguments, ``composite`` the recurrence as torch operations, ``decompositions`` the
operators for exporters, ``flops`` their numbers of floating-point operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rnnkernels import _C as _C  # importing it registers the operators

# csrc/binding/operators.cpp has their schemas and the meaning of each argument.
# Without torch.ops, for calls that need nothing of Python; otherwise it returns None.
projected_recurrence_directly = _C.projected_recurrence

leaky_recurrence: Any = torch.ops.rnnkernels.leaky_recurrence
projected_recurrence: Any = torch.ops.rnnkernels.projected_recurrence
projected_recurrence_backward: Any = torch.ops.rnnkernels.projected_recurrence_backward
leaky_recurrence_backward: Any = torch.ops.rnnkernels.leaky_recurrence_backward
linear_recurrence: Any = torch.ops.rnnkernels.linear_recurrence
clipped_nesterov_: Any = torch.ops.rnnkernels.clipped_nesterov_
clipped_adamw_: Any = torch.ops.rnnkernels.clipped_adamw_
gradient_power_sum: Any = torch.ops.rnnkernels.gradient_power_sum
nade: Any = torch.ops.rnnkernels.nade
nade_backward: Any = torch.ops.rnnkernels.nade_backward
nade_sample: Any = torch.ops.rnnkernels.nade_sample


def implement(operator: str, key: str, function: Callable[..., Any]) -> None:
    """Register a function of Python as the kernel of an operator for a dispatch key.

    The first one stays for the whole process: if the package is imported again, after it was deleted from
    ``sys.modules``, its operators still have their kernels.
    """
    if not has_kernel(operator, key):
        torch.library.impl(f"rnnkernels::{operator}", key, function)


def has_kernel(operator: str, key: str) -> bool:
    """Return whether an operator has a kernel of its own for a dispatch key."""
    has: bool = torch._C._dispatch_has_kernel_for_dispatch_key(f"rnnkernels::{operator}", key)
    return has
