"""The benchmark harness counts, checks and compares rightly; that it is fast is not tested."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import models, report
from benchmarks.harness import NOISE, Candidate, Effort, Question, Row, measure
from parallax import tree

EFFORT = Effort(rounds=5, slice_seconds=1e-4)


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

    question = Question("sum", Candidate("a", lambda: 1), [Candidate("b", lambda: 2)], equal)
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


def test_saved_ratios_are_read_back(tmp_path: Path) -> None:
    answer = report.Answer("file", "question", [Row("row", 1e-6, 0.5, 0.4, 0.6, 0.6)])
    report.save([answer], tmp_path / "new" / "result.json", quick=True)
    before = report.load_ratios(tmp_path / "new" / "result.json")
    assert before == {("file", "question", "row"): 0.5}
    assert "0.500 (+0%)" in report.table(answer, before)


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
