"""The modules: :class:`LeakyRNN` runs over whole sequences, :class:`LeakyRNNCell` takes one step."""

from rnnkernels.nn.cell import LeakyRNNCell
from rnnkernels.nn.rnn import LeakyRNN

__all__ = ["LeakyRNN", "LeakyRNNCell"]
