"""The operators as they are registered: the only module that names ``torch.ops``."""

from __future__ import annotations

from typing import Any

import torch

from rnnkernels import _C as _C  # importing it registers the operators

# Their schemas, and what each argument means, stand in csrc/binding/operators.cpp.
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
