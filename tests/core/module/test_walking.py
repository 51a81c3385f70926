"""``modules``, ``extra_repr``, and trees two hundred modules deep."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from parallax import Module, tree
from tests.comparing import same_tree
from tests.core.module.verbs import sum_of
from tests.corpus import TWINS, Case, Dense, Nested, TiedModule, Twig, chain, example_input
from tests.saving import pickled, saved

# -- modules, extra_repr ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_modules_come_parents_first_and_each_object_once(case: Case) -> None:
    module = case.make()
    found = list(module.modules())
    assert found[0] is module
    assert len(set(map(id, found))) == len(found)
    # One module in two fields is one set of leaves and two places.
    dense = {id(m.weight) for m in found if isinstance(m, Dense)}
    assert len(dense) == len({id(m.weight) for m in case.twin(module).modules()
                              if isinstance(m, nn.Linear)})  # fmt: skip


def test_modules_goes_through_every_container() -> None:
    module = Nested()
    assert [type(m).__name__ for m in module.modules()] == ["Nested", *["Dense"] * 4]
    assert len(list(Twig(Twig(), Twig(Twig())).modules())) == 4


def test_modules_go_on_after_one_that_came_before() -> None:
    module = TiedModule()  # the first of its children stands in three places
    expected = [module, module.one, module.several[1], module.apart]
    assert [id(m) for m in module.modules()] == [id(m) for m in expected]


def test_modules_are_counted_in_a_traced_function() -> None:
    def counted(module: Module, x: torch.Tensor) -> torch.Tensor:
        return x + len(list(module.modules()))

    module = Nested()
    run = torch.compile(counted, backend="eager", fullgraph=True)
    assert run(module, torch.zeros(())) == counted(module, torch.zeros(())) == 5


def test_extra_repr_is_the_constants_unless_overridden() -> None:
    class Plain(Module):
        rate: float
        name: str

    class Own(Plain):
        def extra_repr(self) -> str:
            return f"rate is {self.rate}"

    assert repr(Plain(0.5, "a")) == "Plain(rate=0.5, name='a')"
    assert repr(Own(0.5, "a")) == "Own(rate is 0.5)"


# -- depth -----------------------------------------------------------------------------------------


def test_two_hundred_levels_work_everywhere() -> None:
    deep = chain(200)
    assert "Twig" in repr(deep)
    module = deep.initialize(0)
    assert len(tree.leaves(module)) == 200
    doubled = tree.map(lambda x: 2 * x, module)
    for other in (copy.copy(doubled), copy.deepcopy(doubled), pickled(doubled), saved(doubled)):
        assert same_tree(other, doubled)
        assert repr(other) == repr(doubled)
    ready = doubled.reset(0)
    sum_of(ready, example_input()).backward()
    stepped = ready.update(lambda p, g: p - g, ready.grad())
    assert stepped.eval().split(2)[0].mode == "eval"
    assert len(list(stepped.modules())) == 200
    assert len(tree.named_leaves(stepped)) == 200
    tree.map(torch.add, stepped, module)
    assert tree.structure(stepped.eval()) != tree.structure(stepped)


def test_deeper_is_a_clear_error_and_the_two_hundred_stay_usable() -> None:
    deep = chain(200)
    with pytest.raises(RecursionError, match=r"Twig nests modules more than 200 deep.*tuple\["):
        Twig(deep)
    assert len(tree.leaves(deep.initialize(0))) == 200
