"""Fast leaky-integration recurrent layers for PyTorch.

    h_t = d h_{t-1} + (1 - d) relu(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)

Custom C++ and CUDA kernels compute it, forward and backward. :class:`LeakyRNN` has the interface of
``torch.nn.RNN``. :mod:`rnnkernels.functional` has the recurrence alone, :mod:`rnnkernels.outputs` has
distributions over the next frame, :mod:`rnnkernels.optim` has optimizers that clip and update in one call,
and :mod:`rnnkernels.testing` has the same mathematics in plain NumPy.

Source: Bengio, Boulanger-Lewandowski and Pascanu 2012 (arXiv 1212.0901).
"""

from rnnkernels._build import use_installed

use_installed()

from rnnkernels._build import build_config, check_torch  # noqa: E402  (of the package that is used)
from rnnkernels._version import __version__  # noqa: E402

check_torch()

import rnnkernels._ops.flops  # noqa: E402, F401  (registers the flop formulas; must follow the check)
from rnnkernels import functional, outputs  # noqa: E402
from rnnkernels._ops.decompositions import decompositions  # noqa: E402
from rnnkernels.functional import projected_recurrence  # noqa: E402
from rnnkernels.nn import LeakyRNN, LeakyRNNCell  # noqa: E402
from rnnkernels.optim import ClippedAdamW, ClippedNesterov, MomentumSchedule, paper_momentum  # noqa: E402
from rnnkernels.outputs import (  # noqa: E402
    NADE,
    RBM,
    Categorical,
    IndependentBernoulli,
    expected_accuracy,
    mean_with_interval,
)
from rnnkernels.time_constants import decay_from_tau, draw_decay, draw_tau, noise_scale  # noqa: E402
from rnnkernels.training import activity_penalty, sparsity, truncated_bptt  # noqa: E402

__all__ = [
    "NADE",
    "RBM",
    "Categorical",
    "ClippedAdamW",
    "ClippedNesterov",
    "IndependentBernoulli",
    "LeakyRNN",
    "LeakyRNNCell",
    "MomentumSchedule",
    "__version__",
    "activity_penalty",
    "build_config",
    "decay_from_tau",
    "decompositions",
    "draw_decay",
    "draw_tau",
    "expected_accuracy",
    "functional",
    "mean_with_interval",
    "noise_scale",
    "outputs",
    "paper_momentum",
    "projected_recurrence",
    "sparsity",
    "truncated_bptt",
]
