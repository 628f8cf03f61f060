"""Optimizers that clip by the global norm and update in one fused pass over all parameters.

:class:`ClippedNesterov` stands where ``clip_grad_norm_`` and ``SGD(nesterov=True)`` stood,
:class:`ClippedAdamW` where ``clip_grad_norm_`` and ``AdamW`` did.
"""

from rnnkernels.optim.adamw import ClippedAdamW
from rnnkernels.optim.nesterov import ClippedNesterov
from rnnkernels.optim.schedules import MomentumSchedule, paper_momentum

__all__ = ["ClippedAdamW", "ClippedNesterov", "MomentumSchedule", "paper_momentum"]
