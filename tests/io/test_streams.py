"""File objects in the place of a path, and files that are written in the background."""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from parallax import io, nn, optim, random, tree
from parallax.io import background
from tests.io.test_files import FORMATS, pair
from tests.saving import pickled


def run() -> dict[str, Any]:
    model = nn.Linear(2, 3).initialize(0)
    return {"model": model, "state": optim.Adam().init(model), "step": 3, "key": random.key(7)}


def _wait(waiting: threading.Event) -> None:
    waiting.wait(30)


def assert_same_run(one: Any, two: Any) -> None:
    assert one["step"] == two["step"]
    for name in ("model", "state", "key"):
        assert tree.equal(one[name], two[name])


# -- file objects ---------------------------------------------------------------------------------


def test_a_buffer_holds_any_tree(tmp_path: Path) -> None:
    buffer = BytesIO()
    io.save(run(), buffer, metadata={"epoch": 2})
    buffer.seek(0)
    assert io.metadata(buffer) == {"epoch": 2}
    buffer.seek(0)
    assert_same_run(io.load(buffer, like=run()), run())
    (tmp_path / "run.pt").write_bytes(buffer.getvalue())  # it is torch's format
    assert_same_run(io.load(tmp_path / "run.pt", like=run()), run())
    assert "model.weight" in torch.load(tmp_path / "run.pt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("name", FORMATS)
def test_open_files_are_read_in_either_format(tmp_path: Path, name: str) -> None:
    io.save(pair(), tmp_path / name, metadata={"epoch": 2})
    with (tmp_path / name).open("rb") as file:
        assert tree.equal(io.load(file, like=pair()), pair())
    with (tmp_path / name).open("rb") as file:
        assert set(io.read(file)) == {"first.by", "second.by"}
    with (tmp_path / name).open("rb") as file:
        assert io.metadata(file) == {"epoch": 2}
    with pytest.raises(ValueError, match=r"BytesIO is truncated or no checkpoint"):
        io.load(BytesIO((tmp_path / name).read_bytes()[:-40]), like=pair())


def test_two_checkpoints_in_one_file_object_begin_where_it_is(tmp_path: Path) -> None:
    with (tmp_path / "two").open("wb") as file:
        file.write(b"before")
        io.save(pair(), file)
    with (tmp_path / "two").open("rb") as file:
        file.seek(6)
        assert tree.equal(io.load(file, like=pair()), pair())


def test_nothing_is_written_where_something_cannot_be_saved() -> None:
    buffer = BytesIO()
    with pytest.raises(TypeError, match=r"got object at 'what'"):
        io.save({"model": pair(), "what": object()}, buffer)
    assert buffer.getvalue() == b""


def test_file_objects_that_are_refused(tmp_path: Path) -> None:
    buffer = BytesIO()
    io.save(pair(), buffer)
    with pytest.raises(ValueError, match=r"the BytesIO is at its end.*file.seek\(0\)"):
        io.load(buffer, like=pair())
    text: Any = StringIO("text")
    with pytest.raises(TypeError, match=r"the StringIO gives str, expected bytes.*mode 'rb'"):
        io.load(text, like=pair())
    with pytest.raises(TypeError, match=r"the StringIO takes no bytes.*mode 'wb'"):
        io.save(pair(), text)
    with pytest.raises(ValueError, match=r"blocking=False\): a file object may be in use"):
        io.save(pair(), BytesIO(), blocking=False)
    (tmp_path / "old.pt").write_bytes(b"old")
    with (
        (tmp_path / "old.pt").open("rb") as file,
        pytest.raises(OSError, match=r"not writable|write"),
    ):
        io.save(pair(), file)
    with pytest.raises(ValueError, match=r"the BytesIO holds more than tensors, or is no checkp"):
        io.load(BytesIO(b"no checkpoint at all"), like=pair())


# -- in the background ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_saved_in_the_background_is_what_was_there(tmp_path: Path, name: str) -> None:
    waiting = threading.Event()
    background.start(partial(_wait, waiting))  # a checkpoint that takes long
    leaf = torch.arange(4.0)
    first = io.save({"leaf": leaf, "step": 1}, tmp_path / name, blocking=False)
    leaf.zero_()  # as a step that was given the memory does
    second = io.save({"leaf": leaf, "step": 2}, tmp_path / f"other_{name}", blocking=False)
    assert not first.done() and not list(tmp_path.iterdir())
    waiting.set()
    like: Any = {"leaf": torch.empty(4), "step": 0}
    found = io.load(tmp_path / name, like=like)  # it waits
    assert found["leaf"].tolist() == [0, 1, 2, 3] and found["step"] == 1
    assert io.load(tmp_path / f"other_{name}", like=like)["leaf"].tolist() == [0] * 4
    assert first.result() is None and second.result() is None


def test_a_later_save_comes_later_and_ties_stay(tmp_path: Path) -> None:
    for step in range(5):
        io.save(
            {"leaf": torch.full((1000,), step), "step": step}, tmp_path / "a.pt", blocking=False
        )
    io.save({"leaf": torch.full((1000,), 9), "step": 9}, tmp_path / "a.pt")
    assert (
        io.load(tmp_path / "a.pt", like={"leaf": torch.empty(1000).long(), "step": 0})["step"] == 9
    )
    leaf = torch.ones(3)
    tied = {"one": nn.Linear(1, 3, bias=False).initialize(0).replace(weight=leaf[:, None])}
    io.save(tied, tmp_path / "tied.pt", blocking=False).result()
    assert tree.equal(io.load(tmp_path / "tied.pt", like=tied), tied)


def test_what_goes_wrong_in_the_background_is_told_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io.save(pair(), tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        saving = io.save(pair(), tmp_path / "a.pt", blocking=False)
        with pytest.raises(OSError, match=r"No space"):
            saving.result()
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").read_bytes() == before
    # What is wrong with the call is told at once.
    with pytest.raises(FileNotFoundError, match=r"there is no directory"):
        io.save(pair(), tmp_path / "no" / "a.pt", blocking=False)
    with pytest.raises(TypeError, match=r"io.save\(blocking=\): expected a bool"):
        io.save(pair(), tmp_path / "a.pt", blocking="no")  # type: ignore[call-overload]  # tested


def test_threads_that_save_and_load_see_whole_files(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    path = tmp_path / "a.pt"
    io.save({"leaf": torch.zeros(2000)}, path)

    def work(number: int) -> None:
        try:
            for turn in range(6):
                if number % 2:
                    io.save(
                        {"leaf": torch.full((2000,), float(turn))}, path, blocking=turn % 2 == 0
                    )
                else:
                    leaf = io.load(path, like={"leaf": torch.empty(2000)})["leaf"]
                    assert len(leaf.unique()) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    background.finished()
    assert [found.name for found in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is of POSIX systems")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_does_not_wait_for_the_thread_of_its_parent(tmp_path: Path) -> None:
    waiting = threading.Event()
    background.start(partial(_wait, waiting))
    process = os.fork()
    if not process:  # pragma: no cover
        background.finished()
        background.start(lambda: None).result(5)
        os._exit(0)
    deadline = time.monotonic() + 20
    status = 1
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    waiting.set()
    assert status == 0


def test_directories_and_reports_pickle(tmp_path: Path) -> None:
    checkpoints = io.Checkpoints(tmp_path, keep=2)
    assert pickled(checkpoints) == checkpoints
    io.save(pair(), tmp_path / "a.pt")
    found = io.report(tmp_path / "a.pt", like=pair())
    assert pickled(found) == found
