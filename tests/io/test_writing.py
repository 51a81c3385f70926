"""Temporary files: what killed saves left is removed, and what others are writing is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from parallax import Module, Parameter, io, tree
from parallax.io import writing

FORMATS = ("it.safetensors", "it.pt")


class Point(Module):
    at: Parameter


WRITER = """
import sys, time
from pathlib import Path
from parallax.io import writing
with writing.replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def writer(path: Path) -> subprocess.Popen[str]:
    """A process that is in the midst of a save."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path: Path, name: str) -> None:
    with writer(tmp_path / name) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list(tmp_path.iterdir())) == 1
    io.save(Point(torch.ones(2)), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", FORMATS)
def test_what_another_process_is_writing_stays(tmp_path: Path, name: str) -> None:
    with writer(tmp_path / name) as process:
        (theirs,) = tmp_path.iterdir()
        for _ in range(2):
            io.save(Point(torch.ones(2)), tmp_path / name)
        assert theirs.read_bytes() == b"half" and len(list(tmp_path.iterdir())) == 2
        process.send_signal(signal.SIGKILL)


def test_what_another_process_has_locked_stays_though_its_number_is_unknown_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for a process in another container that shares the folder and the machine's name.
    with writer(tmp_path / "it.pt") as process:
        (theirs,) = tmp_path.iterdir()
        monkeypatch.setattr(writing, "_runs", lambda number: False)
        io.save(Point(torch.ones(2)), tmp_path / "it.pt")
        assert theirs.exists()
        process.send_signal(signal.SIGKILL)


def test_other_files_stay(tmp_path: Path) -> None:
    start = writing._start("it.pt")
    others = [
        ".it.pt.0123456789ab.tmp", "it.pt.tmp", f"{start}x.tmp", f"{start}1.txt",
        f"{writing._start('other.pt')}999999999.0123.tmp",
    ]  # fmt: skip
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / f"{start}999999999.0123.tmp").touch()  # more than Linux has
    io.save(Point(torch.ones(2)), tmp_path / "it.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "it.pt"])


def test_a_process_of_the_same_number_does_not_take_a_file_for_its_own(tmp_path: Path) -> None:
    # In a container that is started again the program has the number that it had.
    left = f"{writing._start('it.pt')}{os.getpid()}.0123.tmp"
    (tmp_path / left).touch()
    io.save(Point(torch.ones(2)), tmp_path / "it.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["it.pt"]


def test_threads_that_save_to_one_path_leave_each_other_alone(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def save(number: int) -> None:
        try:
            for _ in range(20):
                io.save(Point(torch.full((100,), float(number))), tmp_path / "it.pt")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [path.name for path in tmp_path.iterdir()] == ["it.pt"]
    at = io.load(tmp_path / "it.pt", like=Point(torch.ones(100))).at
    assert at.min() == at.max()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("length", [200, 238, 255])
def test_names_may_be_as_long_as_the_system_allows(
    tmp_path: Path, length: int, suffix: str
) -> None:
    path = tmp_path / ("x" * (length - len(suffix)) + suffix)
    for value in (1.0, 2.0):
        io.save(Point(torch.full((2,), value)), path)
    assert tree.equal(io.load(path, like=Point(torch.ones(2))), Point(torch.full((2,), 2.0)))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_saves_that_are_killed_at_any_time_leave_one_file_in_the_end(
    tmp_path: Path, name: str
) -> None:
    program = (
        "import sys, torch\nfrom parallax import Module, Parameter, io\n"
        "class Point(Module):\n    at: Parameter\n"
        "print('go', flush=True)\n"
        "while True: io.save(Point(torch.ones(100_000)), sys.argv[1])\n"
    )
    path: Any = tmp_path / name
    for delay in (0.0, 0.013, 0.041):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "go\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
    io.save(Point(torch.ones(3)), path)
    assert [found.name for found in tmp_path.iterdir()] == [name]
