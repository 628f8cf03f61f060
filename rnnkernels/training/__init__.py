"""Tools for training loops: activity penalty, sparsity of activity and gradients, and truncated BPTT."""

from rnnkernels.training.penalty import activity_penalty
from rnnkernels.training.sparsity import sparsity
from rnnkernels.training.truncated import truncated_bptt

__all__ = ["activity_penalty", "sparsity", "truncated_bptt"]
