"""The main job and what it is made of."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import parallax
from parallax import tree
from parallax.__main__ import main
from parallax.examples import _progress as progress
from parallax.examples._command import run_quietly
from parallax.examples._digit_pictures import confusion_table, digit_pictures
from parallax.examples._digits import load
from parallax.examples._digits_net import DigitsNet, accuracy, train


def test_digits_are_all_there_and_split_by_class() -> None:
    digits = load()
    x, y = torch.cat([digits.train_x, digits.test_x]), torch.cat([digits.train_y, digits.test_y])
    assert x.shape == (1797, 64) and y.shape == (1797,)
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert x.min() == 0 and x.max() == 1
    shares = digits.test_y.bincount() / y.bincount()
    assert ((shares > 0.19) & (shares < 0.21)).all()


def test_digits_are_the_same_at_every_load() -> None:
    def digest() -> str:
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in load())).hexdigest()

    assert digest() == digest()


def _trained(seed: int, epochs: int = 2) -> DigitsNet:
    *_, last = train(DigitsNet().initialize(seed), load(), epochs=epochs, seed=seed)
    return last.net


def test_same_seed_same_network_bit_for_bit() -> None:
    assert tree.equal(_trained(0), _trained(0))
    assert not tree.equal(_trained(0), _trained(1))


def test_training_leaves_the_global_rng_and_the_first_network_alone() -> None:
    net = DigitsNet().initialize(0)
    before, rng = [leaf.clone() for leaf in tree.leaves(net)], torch.get_rng_state()
    list(train(net, load(), epochs=1, seed=0))
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(map(torch.equal, before, tree.leaves(net)))


def test_loss_falls() -> None:
    losses = [loss for _, loss in train(DigitsNet().initialize(0), load(), epochs=4, seed=0)]
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_reaches_ninety_five_percent(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    out = capsys.readouterr().out
    assert float(out.rsplit("test accuracy: ", 1)[1].rstrip("%\n")) >= 95
    assert "dense1.weight" in out


def test_an_untrained_network_guesses() -> None:
    digits = load()
    assert accuracy(DigitsNet().initialize(0), digits.test_x, digits.test_y) < 0.5


@pytest.mark.parametrize(
    "arguments", [["--epochs", "0"], ["--epochs", "-3"], ["--epochs", "x"], ["--seed", "-1"]]
)
def test_bad_arguments_are_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert f"{arguments[0]}: must be a whole number" in capsys.readouterr().err


def test_progress_without_tqdm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1.0)
    assert list(progress.progress("ab", 2, "letters")) == ["a", "b"]
    assert capsys.readouterr().err == "letters: 1/2\nletters: 2/2\n"


class Terminal(io.StringIO):
    """Standard error that is a terminal, or is none."""

    def __init__(self, is_one: bool) -> None:
        super().__init__()
        self.is_one = is_one

    def isatty(self) -> bool:
        return self.is_one


def test_a_long_call_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.waiting("compiling"):
        while "compiling: " not in terminal.getvalue():
            time.sleep(0.01)
    said = terminal.getvalue()
    assert re.match(r"\rcompiling: \d+ s", said)
    assert re.search(r"\r {12,}\r$", said)  # and the line is cleared


@pytest.mark.parametrize(("is_one", "shown"), [(False, True), (True, False)])
def test_a_log_and_a_later_call_get_nothing(
    is_one: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(is_one)
    monkeypatch.setattr(sys, "stderr", terminal)
    before = threading.active_count()
    with progress.waiting("compiling", shown):
        assert threading.active_count() == before
    assert terminal.getvalue() == ""


def test_the_table_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "46")
    main(["--epochs", "1"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 46 and "\x1b" not in out


def test_the_digits_and_what_was_read_are_drawn() -> None:
    images = torch.zeros(3, 64)
    images[0, 8:16] = 1.0  # a black second row
    lines = digit_pictures(images, torch.tensor([1, 2, 3]), torch.tensor([1, 5, 3]), 20)
    assert lines.splitlines() == ["", "########", *[""] * 6, "1         5, not 2"]


def test_confusions_are_counted_by_row_and_column() -> None:
    table = confusion_table(torch.tensor([3, 3, 7]), torch.tensor([3, 9, 7]))
    cells = [line.split()[1:] for line in table.splitlines()[1:]]
    wanted = [["."] * 10 for _ in range(10)]
    wanted[3][3] = wanted[3][9] = wanted[7][7] = "1"
    assert cells == wanted


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (None, 0)])
def test_an_interruption_ends_without_a_traceback(
    error: type[BaseException] | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def program() -> None:
        if error is not None:
            raise error

    assert run_quietly(program) == code
    assert capsys.readouterr().err == ("interrupted\n" if error else "")


@pytest.mark.parametrize("program", [("-m", "parallax"), ("-c", "import parallax")])
def test_an_interruption_while_torch_is_loaded(program: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    root = str(Path(parallax.__file__).parents[1])
    paths = os.pathsep.join([str(tmp_path), root])
    done = subprocess.run(
        [sys.executable, *program],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    if program[0] == "-m":
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    else:  # a program of somebody else's, which may want to know
        assert done.returncode != 0 and "KeyboardInterrupt" in done.stderr


def test_a_closed_pipe_ends_without_a_traceback() -> None:
    command = [sys.executable, "-m", "parallax", "--epochs", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().decode()
    assert "Traceback" not in said and process.returncode == 141


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"parallax {parallax.__version__}\n"


def test_torch_says_nothing_of_numpy_where_that_is_missing() -> None:
    code = "import sys; sys.modules['numpy'] = None; import parallax"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "parallax", "--epochs", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "test accuracy" in done.stdout
