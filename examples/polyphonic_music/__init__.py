"""The techniques of arXiv 1212.0901 on polyphonic music, ``PYTHONPATH=examples python -m polyphonic_music``.

Recurrent networks predict the next frame of a piano roll. They are trained by stochastic gradient descent,
and then with the techniques of the paper added one after the other: gradient clipping, leaky units, rectified
units with sparse gradients, and its form of Nesterov's momentum. The outputs are independent, NADE or RBM.
"""
