"""The mathematics in plain NumPy, float64, to read beside the kernels and to test them against.

:mod:`rnnkernels.testing.recurrence` has the leaky recurrence, forward and backward,
:mod:`rnnkernels.testing.optimizers` the steps of the optimizers, and :mod:`rnnkernels.testing.outputs` NADE
and the RBM.
"""

from rnnkernels.testing.optimizers import adamw_step, clip_coefficient, nesterov_step
from rnnkernels.testing.recurrence import (
    NONLINEARITIES,
    Gradients,
    leaky_recurrence,
    leaky_recurrence_backward,
)

__all__ = [
    "NONLINEARITIES",
    "Gradients",
    "adamw_step",
    "clip_coefficient",
    "leaky_recurrence",
    "leaky_recurrence_backward",
    "nesterov_step",
]
