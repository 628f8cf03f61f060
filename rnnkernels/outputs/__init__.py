"""Distributions over the next frame; their biases are linear in the state of a recurrent network.

Each model is a module with ``log_prob(v, state)``, ``loss(v, state)``, ``sample(state)`` and
``marginals(state)``. A state is ``[..., C]`` with any leading dimensions; the ``.data`` of a packed sequence
is one as well. ``docs/outputs.md`` is the guide and helps to choose a model.
"""

from rnnkernels.outputs.accuracy import expected_accuracy
from rnnkernels.outputs.ais import MeanInterval, mean_with_interval
from rnnkernels.outputs.categorical import Categorical
from rnnkernels.outputs.independent import IndependentBernoulli
from rnnkernels.outputs.nade import NADE
from rnnkernels.outputs.rbm import RBM

__all__ = [
    "NADE",
    "RBM",
    "Categorical",
    "IndependentBernoulli",
    "MeanInterval",
    "expected_accuracy",
    "mean_with_interval",
]
