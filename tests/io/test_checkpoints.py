"""A directory of numbered checkpoints: whole ones only, the latest of them, also after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch

from parallax import io
from parallax.io import background, files, writing
from tests.io.test_streams import _wait, assert_same_run, run

SUFFIXES = (".pt", ".safetensors")


def names(path: Path) -> list[str]:
    return sorted(found.name for found in path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("blocking", [True, False])
def test_the_latest_are_kept_and_the_last_is_loaded(
    tmp_path: Path, suffix: str, blocking: bool
) -> None:
    checkpoints = io.Checkpoints(tmp_path / "runs" / "one", keep=2, suffix=suffix)
    begun = run()
    assert checkpoints.steps() == () and checkpoints.resume(begun) is begun
    for step in (0, 9, 10, 100):  # by number, not by name
        saved: Any = {**run(), "step": step}
        if blocking:
            checkpoints.save(saved, step, metadata={"at": step})
        else:
            checkpoints.save(saved, step, metadata={"at": step}, blocking=False)
    assert checkpoints.steps() == (10, 100)
    assert names(tmp_path / "runs" / "one") == [f"step-10{suffix}", f"step-100{suffix}"]
    assert_same_run(checkpoints.resume(run()), {**run(), "step": 100})
    assert_same_run(checkpoints.load(like=run(), step=10), {**run(), "step": 10})
    assert io.metadata(checkpoints.file()) == {"at": 100}
    assert_same_run(io.load(checkpoints.file(100), like=run()), {**run(), "step": 100})


def test_one_step_is_saved_again_in_either_format_and_all_are_kept_where_asked(
    tmp_path: Path,
) -> None:
    every = io.Checkpoints(tmp_path, keep=None)
    for step in range(5):
        every.save({"x": torch.zeros(1)}, step)
    assert every.steps() == (0, 1, 2, 3, 4)
    io.Checkpoints(tmp_path, keep=None, suffix=".safetensors").save({"x": torch.ones(1)}, 4)
    assert "step-4.pt" not in names(tmp_path) and every.steps() == (0, 1, 2, 3, 4)
    assert every.load(like={"x": torch.zeros(1)})["x"].item() == 1


def test_other_files_are_neither_taken_for_checkpoints_nor_removed(tmp_path: Path) -> None:
    others = ["step-5.pt.tmp", "step-07.pt", "step--1.pt", "step-5.txt", "log", ".step-5.pt"]
    for name in others:
        (tmp_path / name).write_bytes(b"?")
    checkpoints = io.Checkpoints(tmp_path, keep=1)
    checkpoints.save({"x": torch.zeros(1)}, 1)
    checkpoints.save({"x": torch.zeros(1)}, 2)
    assert names(tmp_path) == sorted([*others, "step-2.pt"])


def test_what_cannot_be_saved_leaves_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = io.Checkpoints(tmp_path, keep=1)
    checkpoints.save(run(), 1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"No space"):
            checkpoints.save(run(), 2)
        with pytest.raises(OSError, match=r"No space"):
            checkpoints.save(run(), 2, blocking=False).result()
    assert names(tmp_path) == ["step-1.pt"]
    assert_same_run(checkpoints.resume(run()), run())


def test_what_is_refused(tmp_path: Path) -> None:
    wrong: Any
    for wrong, message in (
        ({"path": 3}, r"expected the path of a file, got int"),
        ({"path": "x", "keep": "3"}, r"Checkpoints\(keep=\): expected an int or None, got '3'"),
        ({"path": "x", "keep": True}, r"Checkpoints\(keep=\): expected an int or None, got True"),
        ({"path": "x", "keep": 0}, r"Checkpoints\(keep=\): must be at least 1, got 0"),
        ({"path": "x", "suffix": ".bin"}, r"expected '.pt' or '.safetensors', got '.bin'"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            io.Checkpoints(**wrong)
    checkpoints = io.Checkpoints(tmp_path)
    with pytest.raises(FrozenInstanceError):
        checkpoints.keep = 5  # type: ignore[misc]  # tested
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint in .*Checkpoints.save"):
        checkpoints.load(like=run())
    checkpoints.save(run(), 5)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .*there are 5"):
        checkpoints.load(like=run(), step=3)
    with pytest.raises(ValueError, match=r"step=4\).* holds a checkpoint of step 5, which would"):
        checkpoints.save(run(), 4)
    with pytest.raises(ValueError, match=r"save\(step=\): must be at least 0, got -1"):
        checkpoints.save(run(), -1)
    for wrong in (2.0, True, "2"):
        with pytest.raises(TypeError, match=r"save\(step=\): expected an int.*Write step=100"):
            checkpoints.save(run(), wrong)
    with pytest.raises(TypeError, match=r"takes a module.*got object at 'x'"):
        checkpoints.save({"x": object()}, 6)
    with pytest.raises(RuntimeError, match=r"other is not in the checkpoint"):
        checkpoints.resume({**run(), "other": 1})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=r"is a file. Name a directory"):
        io.Checkpoints(tmp_path / "file").save(run(), 1)
    assert checkpoints.steps() == (5,)


def test_an_earlier_step_that_meets_a_later_one_under_way_is_refused(tmp_path: Path) -> None:
    waiting = threading.Event()
    background.start(lambda: _wait(waiting))
    checkpoints = io.Checkpoints(tmp_path)
    later = checkpoints.save(run(), 2, blocking=False)
    earlier = checkpoints.save(run(), 1, blocking=False)
    waiting.set()
    with pytest.raises(ValueError, match=r"holds a checkpoint of step 2"):
        earlier.result()
    assert later.result() is None and checkpoints.steps() == (2,)


def test_a_damaged_checkpoint_is_told_and_the_one_before_can_be_loaded(tmp_path: Path) -> None:
    checkpoints = io.Checkpoints(tmp_path)
    checkpoints.save(run(), 1)
    checkpoints.save(run(), 2)
    file = checkpoints.file(2)
    file.write_bytes(file.read_bytes()[:-100])  # a disk that failed
    with pytest.raises(ValueError, match=r"step-2.pt is truncated"):
        checkpoints.resume(run())
    assert_same_run(checkpoints.load(like=run(), step=1), run())


def test_what_a_killed_save_left_is_removed_whichever_step_it_was_for(tmp_path: Path) -> None:
    left = f"{writing._start('step-*')}999999999.0123.tmp"  # no process has this number
    theirs = f"{writing._start('step-1.pt')}999999999.0123.tmp"  # of io.save, which removes it
    for name in (left, theirs):
        (tmp_path / name).write_bytes(b"half")
    io.Checkpoints(tmp_path).save(run(), 7)
    assert names(tmp_path) == sorted([theirs, "step-7.pt"])


PROGRAM = """
import sys, torch
from parallax import io
checkpoints = io.Checkpoints(sys.argv[1], keep=2)
run = checkpoints.resume({"leaf": torch.zeros(200_000), "step": 0})
print("go", flush=True)
for step in range(run["step"] + 1, 100_000):
    leaf = run["leaf"].copy_(torch.tensor(float(step)))
    run = {"leaf": leaf, "step": step}
    checkpoints.save(run, step, blocking=False)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_time_goes_on_from_a_whole_checkpoint(tmp_path: Path) -> None:
    last = -1
    checkpoints = io.Checkpoints(tmp_path, keep=2)
    like: Any = {"leaf": torch.zeros(200_000), "step": 0}
    for delay in (0.07, 0.201):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "go\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        found = checkpoints.resume(like)
        assert found["step"] == max(checkpoints.steps(), default=0) >= last
        assert bool((found["leaf"] == found["step"]).all())  # of one step, not torn
        last = found["step"]
    checkpoints.save({"leaf": torch.zeros(200_000), "step": last + 1}, last + 1)
    # What the killed ones left is gone, whichever step it was for.
    assert {name.partition("-")[0] for name in names(tmp_path)} == {"step"}
    assert len(names(tmp_path)) <= 2


def test_a_reader_takes_the_newest_again_if_the_one_it_found_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, real, left = io.Checkpoints(tmp_path, keep=1), files.load, [3]

    def late(path: Any, **options: Any) -> Any:
        if left[0] > 0:  # another process saves the next one, and removes this one
            left[0] -= 1
            step = checkpoints.steps()[-1] + 1
            checkpoints.save({"step": step}, step)
        return real(path, **options)

    checkpoints.save({"step": 0}, 0)
    monkeypatch.setattr(files, "load", late)
    assert checkpoints.load(like={"step": 0}) == {"step": 3}
    left[0] = 1
    with pytest.raises(FileNotFoundError):  # which was asked for, and is gone
        checkpoints.load(like={"step": 0}, step=3)
    left[0] = 10**6
    with pytest.raises(FileNotFoundError):  # not for ever
        checkpoints.load(like={"step": 0})


def test_readers_see_whole_checkpoints_while_another_thread_saves(tmp_path: Path) -> None:
    checkpoints = io.Checkpoints(tmp_path, keep=2)
    checkpoints.save({"leaf": torch.zeros(1000)}, 0)
    done, errors = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                leaf = checkpoints.load(like={"leaf": torch.empty(1000)})["leaf"]
                assert len(leaf.unique()) == 1
            except BaseException as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(1, 12):
        checkpoints.save({"leaf": torch.full((1000,), float(step))}, step)
    done.set()
    reader.join()
    assert not errors and checkpoints.steps() == (10, 11)
    assert checkpoints.load(like={"leaf": torch.empty(1000)})["leaf"].unique().tolist() == [11]
