"""Benchmarks of rnnkernels; run `python -m benchmarks --help` from the repository root."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# `python -m` puts the repository, with its folder rnnkernels, first on the path. Move it to the end, so that
# an installed rnnkernels is found first: the folder may have no compiled extension.
if sys.path[:1] == [str(ROOT)]:
    sys.path.append(sys.path.pop(0))
