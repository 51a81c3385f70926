"""The line that tells what is compiled, for whoever waits at a terminal."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax.compiler import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(Terminal):
    def write(self, text: str, /) -> int:
        raise BrokenPipeError


def put(patch: pytest.MonkeyPatch, stream: Any, after: float = 0.0) -> Any:
    """Has stderr be this; no fixture, for pytest has its own stderr when a test begins."""
    patch.setattr(sys, "stderr", stream)
    patch.setattr(progress, "_AFTER", after)
    patch.setattr(progress, "_EVERY", 0.01)
    return stream


def awaiting(seen: Callable[[], bool], then: Callable[[], None] = lambda: None) -> Any:
    """A backend that takes until something is seen."""

    def backend(graph: Any, inputs: Any) -> Any:
        until = time.monotonic() + 60
        while not seen() and time.monotonic() < until:
            time.sleep(0.005)
        then()
        return graph.forward

    return backend


def double(x: Tensor) -> Tensor:
    return 2 * x


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "parallax" in thread.name]


def test_a_line_tells_what_is_compiled_and_ends_when_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = put(monkeypatch, Terminal())
    backend = awaiting(lambda: terminal.getvalue().count("so far") > 1)
    step = parallax.compile(double, backend=backend)
    assert torch.equal(step(torch.ones(2)), torch.full((2,), 2.0))
    text = terminal.getvalue()
    line = r"(\rcompiling double: \d+ s so far)+\r +\rcompiled double in \d+ s\n"
    assert re.fullmatch(line, text)
    assert not threads()
    step(torch.ones(2))  # compiles nothing
    assert terminal.getvalue() == text


def test_an_interrupt_erases_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    terminal = put(monkeypatch, Terminal())
    backend = awaiting(lambda: "so far" in terminal.getvalue(), interrupt)
    with pytest.raises(KeyboardInterrupt):
        parallax.compile(double, backend=backend)(torch.ones(2))
    assert re.fullmatch(r"(\rcompiling double: \d+ s so far)+\r +\r", terminal.getvalue())
    assert not threads()


def test_no_thread_is_started_where_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    for stream in (io.StringIO(), None, object()):
        put(monkeypatch, stream)
        assert parallax.compile(double, backend="eager")(torch.ones(1)).item() == 2
        parallax.compile(double, backend="eager").lower(torch.ones(1))
    assert not started


def test_a_short_compile_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = put(monkeypatch, Terminal(), after=300.0)
    began = time.monotonic()
    parallax.compile(double, backend="eager")(torch.ones(2))
    assert time.monotonic() - began < 200  # it did not wait for the line
    assert not terminal.getvalue()
    assert not threads()


def test_a_terminal_that_is_gone_stops_no_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, Broken())
    step = parallax.compile(double, backend=awaiting(lambda: not threads()))
    assert step(torch.ones(1)).item() == 2
