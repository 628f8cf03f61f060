"""Every test starts with the same seed and number of threads, independent of earlier tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch
from helpers import ROOT
from hypothesis import HealthCheck, settings

sys.path.append(str(ROOT))  # for `benchmarks`; last, so that an installed rnnkernels is found first

# Graphs in torch's cache on disk contain the backward formulas of the build with which they were traced.
os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

# Derandomized, so that a run in CI fails only if the code changed. No deadline: machines differ.
settings.register_profile(
    "rnnkernels",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    print_blob=False,
)
settings.load_profile("rnnkernels")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
