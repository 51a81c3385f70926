"""What every test shares: the --slow option, hypothesis's budgets, a fresh dynamo, a small heap."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.process_state import changed, state

# A deadline would measure the machine; how many examples are tried is what a profile decides.
settings.register_profile(
    "quick", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("slow", settings.get_profile("quick"), max_examples=300)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """A worker for each core, at most four, unless told otherwise; none without xdist."""
    option = config.option
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker, which must not start others
        return
    if "numprocesses" in option and option.numprocesses is None and not option.usepdb:
        option.numprocesses = min(os.cpu_count() or 1, 4)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("slow" if config.getoption("--slow") else "quick")
    # Workers share the cores, so that each takes one thread, as do the processes that it starts.
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: runs with --slow")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Two savings: nothing here is proved or measured by what they leave out."""
    # What was imported stays: the collector need not look through its million objects again.
    gc.collect()
    gc.freeze()
    # Dynamo empties the processor's caches after every graph, to log how long its guards take.
    guards = sys.modules.get("torch._dynamo.guards")
    if guards is not None:
        vars(guards)["profile_guard_manager"] = lambda *_: 0.0


@pytest.fixture(autouse=True)
def process_as_found() -> Iterator[None]:
    """After a test the process is as before; the global generator is put back for the next one."""
    before, generator = state(), torch.get_rng_state()
    yield
    torch.set_rng_state(generator)
    found = changed(before, state())
    assert not found, "; ".join(found)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Neither the graphs of earlier tests nor, for later ones, those of this."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def small_heap() -> None:
    """The collector sees only what the test makes."""
    gc.collect()
    gc.freeze()
