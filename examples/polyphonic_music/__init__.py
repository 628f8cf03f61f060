"""The technique ladder of arXiv 1212.0901 on polyphonic music: ``python -m polyphonic_music --help``.

Recurrent networks that predict the next frame of a piano roll, by stochastic gradient descent and by what the
paper adds to it one after the other: clipping, leaks, rectifiers with sparse gradients, its Nesterov rule;
with independent, NADE and RBM outputs.
"""
