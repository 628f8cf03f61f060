"""The layers: :class:`LeakyRNN` over whole sequences, :class:`LeakyRNNCell` one step at a time."""

from rnnkernels.nn.cell import LeakyRNNCell
from rnnkernels.nn.rnn import LeakyRNN

__all__ = ["LeakyRNN", "LeakyRNNCell"]
