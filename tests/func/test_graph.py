"""Which tensors lead to leaves that a derivative does not own."""

from __future__ import annotations

import torch

from parallax.func.graph import escaping, outside, retire


def test_a_view_of_an_own_leaf_is_own_and_of_another_is_not() -> None:
    leaf = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        view = leaf[:2]
        twice = view[:1]
    if not view.requires_grad:  # it says so without a graph
        view.requires_grad_()
    assert escaping([leaf, view], {id(leaf)}) == [False, False]
    assert escaping([leaf, view], set()) == [True, True]
    assert escaping([twice], {id(leaf)}) == [False]


def test_results_that_reach_a_foreign_leaf_are_told_apart() -> None:
    own, foreign = (torch.ones(1, requires_grad=True) for _ in range(2))
    mixed, alone = own * foreign, own * 2
    assert escaping([mixed, alone, mixed + alone], {id(own)}) == [True, False, True]
    assert escaping([mixed, alone], {id(own), id(foreign)}) == [False, False]


def test_a_walk_tells_of_leaves_and_lists_the_nodes_that_it_met() -> None:
    own, foreign = (torch.ones(1, requires_grad=True) for _ in range(2))
    sine = own.sin()
    product = sine * own
    nodes: list[object] = []
    assert outside([product], {id(own)}, nodes) == (False, False)
    assert set(nodes) == {product.grad_fn, sine.grad_fn}
    assert outside([product], set(), []) == (True, True)
    assert outside([sine * foreign], {id(own)}, []) == (True, True)
    assert outside([own], set(), []) == (True, True)
    assert outside([own], {id(own)}, []) == (False, False)
    retire([foreign])  # nobody can ask for its derivative any more
    for reached in (foreign, foreign.sin()):
        assert outside([own, reached], {id(own)}, []) == (False, True)
