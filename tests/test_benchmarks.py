"""The benchmark harness counts, checks and compares rightly; that it is fast is not tested."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import cuda, floor, headline, models, page, plots, records, report, verdicts
from benchmarks.harness import NOISE, Candidate, Effort, Question, Row, measure
from parallax import tree

EFFORT = Effort(rounds=5, slice_seconds=1e-4, question_seconds=1.0)


def _watch(items: Iterable[int], total: int, label: str) -> Iterable[int]:
    del total, label
    return items


def _fixed(name: str, seconds: float, limit: float | None = None, per: int = 1) -> Candidate:
    return Candidate(name, lambda: seconds, self_timed=True, limit=limit, per=per)


def test_ratios_limits_and_units() -> None:
    question = Question(
        "fixed",
        _fixed("one", 1.0),
        [_fixed("two", 2.0, 1.5), _fixed("half", 0.5, 1.5), _fixed("many", 10.0, per=100)],
    )
    one, noise, two, half, many = measure(question, EFFORT, _watch)
    assert (one.ratio, noise.ratio, two.ratio, half.ratio, many.ratio) == (1, 1, 2, 0.5, 0.1)
    assert (one.verdict, two.verdict, half.verdict) == ("", "OVER", "ok")
    assert noise.name == NOISE


def test_disagreement_is_found_before_anything_is_timed() -> None:
    def equal(a: object, b: object) -> None:
        assert a == b

    question = Question("sum", Candidate("a", lambda: 1), [Candidate("b", lambda: 2)], check=equal)
    with pytest.raises(AssertionError, match="sum: 'b' disagrees with the reference"):
        measure(question, EFFORT, _watch)


def test_setup_gives_every_call_an_argument_of_its_own() -> None:
    numbers, seen = count(), list[int]()
    question = Question(
        "setup",
        Candidate("plain", lambda: None),
        [Candidate("fresh", seen.append, setup=lambda: next(numbers))],
    )
    measure(question, EFFORT, _watch)
    assert len(seen) == len(set(seen)) > EFFORT.rounds


def test_the_floor_is_a_distance_for_every_row_and_is_checked_as_well() -> None:
    question = Question(
        "far",
        _fixed("one", 1.0),
        [_fixed("two", 2.0)],
        peers=[_fixed("three", 3.0)],
        floor=_fixed("half", 0.5),
    )
    rows = measure(question, EFFORT, _watch)
    assert [(row.role, row.name, row.floor) for row in rows if row.role != "noise"] == [
        ("reference", "one", 2.0),
        ("ours", "two", 4.0),
        ("peer", "three", 6.0),
        ("floor", "half", 1.0),
    ]
    wrong = Question(
        "sum",
        Candidate("a", lambda: 1),
        [],
        check=lambda a, b: _equal(a, b),
        floor=Candidate("b", lambda: 2),
    )
    with pytest.raises(AssertionError, match="'b' disagrees"):
        measure(wrong, EFFORT, _watch)


def _equal(a: object, b: object) -> None:
    assert a == b


def test_time_ends_a_question_once_there_are_rounds_for_a_median() -> None:
    calls: list[int] = []

    def slow() -> None:
        time.sleep(0.002)
        calls.append(1)

    question = Question("slow", Candidate("slow", slow), [])
    measure(question, Effort(rounds=500, slice_seconds=1e-4, question_seconds=0.01), _watch)
    assert 10 <= len(calls) < 50


def _record(*rows: Row, part: str = "part") -> records.Record:
    answers = [records.Answer(part, "question", rows, {"peer": "not installed"})]
    curve = records.Curve(part, "growth", "size", "s", {"square": [(n, n * n) for n in (1, 2, 4)]})
    loss = records.Curve(part, "loss", "step", "loss", {"sgd": [(0, 2.0), (9, 1.0)]}, powers=False)
    about = records.about("cpu", 1.0, quick=True)
    return records.Record(about, answers, [curve, loss])


ROWS = (
    Row("reference", "torch", 1e-6, 1.0, 1.0, 1.0),
    Row("noise", NOISE, 1e-6, 1.0, 0.98, 1.02),
    Row("ours", "row", 1e-6, 0.5, 0.45, 0.55, 0.4, 1.5),
)


def test_a_record_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    record = _record(*ROWS)
    records.save(record, tmp_path / "new" / "result.json")
    read = records.load(tmp_path / "new" / "result.json")
    assert read.about == record.about and read.curves == record.curves
    assert [list(answer.rows) for answer in read.answers] == [list(ROWS)]


def test_exponents_are_those_of_the_power() -> None:
    assert _record(*ROWS).curves[0].exponents() == pytest.approx({"square": 2.0})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (Row("ours", "row", 1e-6, 0.50, 0.45, 0.55), 0),  # the same
        (Row("ours", "row", 1e-6, 0.56, 0.54, 0.60), 0),  # quartiles overlap
        (Row("ours", "row", 1e-6, 0.70, 0.65, 0.75), 1),
        (Row("ours", "new", 1e-6, 0.70, 0.65, 0.75), 0),  # nothing to compare with
    ],
)
def test_only_what_moved_beyond_the_noise_is_told(row: Row, says: int) -> None:
    lines = list(records.moved(_record(*ROWS), _record(*ROWS[:2], row)))
    assert len(lines) == says
    if says:
        assert lines == ["part: question: row: 0.500 -> 0.700 (+40%)"]


def test_a_change_within_the_noise_of_either_run_is_not_told() -> None:
    noisy = (
        ROWS[0],
        Row("noise", NOISE, 1e-6, 1.0, 0.6, 1.5),
        Row("ours", "row", 1e-6, 0.7, 0.65, 0.75),
    )
    assert not list(records.moved(_record(*ROWS), _record(*noisy)))
    assert not list(records.moved(_record(*noisy), _record(*ROWS)))


def test_tables_and_the_page_say_limits_floors_and_absent_peers() -> None:
    record = _record(*ROWS)
    text = report.table(record.answers[0])
    assert "OVER" in text and "1.50" in text and "peer: absent, not installed" in text
    said = page.page(record)
    assert "## Over their limit: 1\n\n- part: question: row 0.500 (0.40)\n" in said
    assert "| row | 0.500 (0.450-0.550) | 1.50 | 0.40 OVER |" in said
    assert "| square | 2.00 | 1 | 4 |" in said and "| sgd | 9 | 1 |" in said


def _answer(question: str, *rows: Row, all_threads: bool = False) -> records.Answer:
    return records.Answer("part", question, rows, remains="It must", all_threads=all_threads)


def test_answers_of_one_form_share_a_table_with_a_column_for_all_threads() -> None:
    answers = [
        _answer("small", *ROWS),
        _answer("small", ROWS[0], Row("ours", "row", 1e-6, 0.7, 0.6, 0.8), all_threads=True),
        _answer("large", *ROWS),
    ]
    about = records.about("cpu", 1.0, quick=True)
    said = page.page(records.Record(about, answers, []))
    assert (
        "| to torch | row | all threads | floor | limit | noise |\n"
        "|---|---|---|---|---|---|\n"
        "| small | 0.500 (0.450-0.550) | 0.700 (0.600-0.800) | 1.50 | 0.40 OVER | 2% |\n"
        "| large | 0.500 (0.450-0.550) |  | 1.50 | 0.40 OVER | 2% |\n"
    ) in said
    assert "## Over their limit: 2\n\n- part: small: row" in said
    assert "## Further than 1.2 from the floor: 2\n\nIt must:\n\n- part: small: row" in said


def test_what_is_far_from_the_floor_and_what_is_behind_a_peer() -> None:
    peer = Row("peer", "peer", 1e-6, 0.4, 0.39, 0.41, None, 1.0)
    record = records.Record({}, [_answer("asked", *ROWS, peer)], [])
    (far,), (behind,) = verdicts.far(record), verdicts.behind(record)
    assert (far.row.name, far.says) == ("row", "1.50")
    assert (behind.row.name, behind.says) == ("row", "1.25 of peer")
    ahead = Row("peer", "peer", 1e-6, 0.52, 0.5, 0.6)
    assert not list(verdicts.behind(records.Record({}, [_answer("asked", *ROWS, ahead)], [])))


def test_a_reference_that_is_the_floor_is_nobody_to_be_ahead_of() -> None:
    slower = Row("ours", "row", 1e-6, 1.5, 1.4, 1.6, None, 1.5)
    floor_row = Row("reference", "flat list", 1e-6, 1.0, 1.0, 1.0, None, 1.0)
    record = records.Record({}, [_answer("asked", floor_row, ROWS[1], slower)], [])
    assert not list(verdicts.behind(record))
    assert [verdict.says for verdict in verdicts.far(record)] == ["1.50"]


def test_a_picture_for_every_part_and_curve(tmp_path: Path) -> None:
    made = plots.draw(_record(*ROWS), tmp_path, "run")
    assert [path.name for path in made] == [
        "run-part.png",
        "run-part-curve0.png",
        "run-part-curve1.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_the_picture_of_the_readme_shows_the_numbers_of_the_page() -> None:
    folder = Path(headline.__file__).parent
    text, drawn = (folder / "RESULTS.md").read_text(), (folder / "speed.svg").read_text()
    answers = []
    for line in headline.HEADLINES:
        table = text.split(f"## {line.part}\n")[1].split(f"**{line.question}**")[1]
        ratio = float(table.split(f"| {line.row} | ")[1].split(" ")[0])
        row = Row("ours", line.row, 1e-6, ratio, ratio, ratio)
        answers.append(records.Answer(line.part, line.question, [row]))
    assert headline.picture(records.Record({}, answers, [])) == drawn


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (models.NnMLP((8, 8, 8, 8)), torch.randn(3, 8)),
        (models.NnChain(4, 8), torch.randn(3, 8)),
        (models.NnGPT(2, width=8), torch.randint(models.VOCABULARY, (2, 16))),
    ],
)
def test_the_floor_computes_what_the_model_does(model: nn.Module, x: torch.Tensor) -> None:
    assert torch.equal(floor.forward_of(model)(x), model(x))
    grads, value = floor.gradient_of(model, torch.sum, x)()
    expected = model(x).sum()
    expected.backward()
    assert torch.equal(value, expected)
    for grad, parameter in zip(grads, model.parameters(), strict=True):
        assert parameter.grad is not None and torch.equal(grad, parameter.grad)


@pytest.mark.parametrize(
    ("model", "leaves"), [(models.NnMLP((8, 8, 8, 8)), 6), (models.NnGPT(12, width=8), 150)]
)
def test_the_three_forms_of_a_model_hold_the_same_tensors(model: nn.Module, leaves: int) -> None:
    module = models.mirror(model)
    names = dict(tree.named_leaves(module))
    assert list(names) == [name for name, _ in model.named_parameters()]
    assert len(names) == leaves
    assert all(
        names[name].data_ptr() == value.data_ptr() for name, value in model.named_parameters()
    )
    again = models.rebuild(module)
    assert again is not module
    assert all(a is b for a, b in zip(tree.leaves(again), tree.leaves(module), strict=True))


def test_gpt_computes_the_same_in_both_forms() -> None:
    model = models.NnGPT(2)
    tokens = torch.randint(models.VOCABULARY, (2, 16))
    torch.testing.assert_close(models.mirror(model)(tokens), model(tokens))


def test_the_questions_for_a_gpu_are_sound_on_the_cpu() -> None:
    asked = list(cuda.questions(quick=True, device="cpu"))
    assert len(asked) == 8
    for question in asked:
        rows = measure(question, Effort(2, 1e-5, 1.0), _watch)
        assert all(row.seconds > 0 for row in rows)
