"""Optimizers that clip gradients by their global norm and update all parameters in one fused pass.

:class:`ClippedNesterov` replaces ``clip_grad_norm_`` and ``torch.optim.SGD(nesterov=True)``;
:class:`ClippedAdamW` replaces ``clip_grad_norm_`` and ``torch.optim.AdamW``. docs/optimizer.md is the guide.
"""

from rnnkernels.optim.adamw import ClippedAdamW
from rnnkernels.optim.nesterov import ClippedNesterov
from rnnkernels.optim.schedules import MomentumSchedule, paper_momentum

__all__ = ["ClippedAdamW", "ClippedNesterov", "MomentumSchedule", "paper_momentum"]
