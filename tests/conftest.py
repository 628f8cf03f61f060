"""Every test starts with the same seed and number of threads, independent of earlier tests."""

from __future__ import annotations

import itertools
import os
import sys
from collections import defaultdict
from collections.abc import Iterator

import background
import pytest
import torch
from background import Job
from helpers import ROOT
from hypothesis import HealthCheck, settings

sys.path.append(str(ROOT))  # for `benchmarks`; last, so that an installed rnnkernels is found first

# Graphs in torch's cache on disk contain the backward formulas of the build with which they were traced.
os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

# Derandomized, so that a run in CI fails only if the code changed. No deadline: machines differ.
for name, examples in (("quick", 60), ("full", 300)):
    settings.register_profile(
        name,
        derandomize=True,
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        print_blob=False,
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run slow tests and every case of the others, too")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("full" if config.getoption("--full") else "quick")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only a full run has, and put the tests that wait for a job after all others."""
    if not config.getoption("--full"):
        taken = [item for item in items if in_quick_run(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(taken)])
        items[:] = taken
    items.sort(key=lambda item: job_of(item) is not None)


def in_quick_run(item: pytest.Item) -> bool:
    if item.get_closest_marker("slow"):
        return False
    if every := item.get_closest_marker("every"):
        seen = _seen[item.nodeid.partition("[")[0]]
        return bool(next(seen) % every.args[0] == 0)
    return True


_seen: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)  # cases of a test, counted


def job_of(item: pytest.Item) -> Job | None:
    callspec = getattr(item, "callspec", None)
    job = callspec.params.get("job") if callspec else None
    return job if isinstance(job, Job) else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    if session.config.option.collectonly or session.testsfailed:
        return
    for item in session.items:
        if job := job_of(item):
            job.start()


def pytest_sessionfinish() -> None:
    background.stop()


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
