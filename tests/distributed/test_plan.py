"""A plan places the leaves of a tree as its rules say, and puts them together again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

import parallax
from parallax import UninitializedError, nn, random, tree
from parallax import distributed as dist
from tests.distributed.transformer import ROWS, small
from tests.meshes import ranks, whole

RULES: Any = {"dp": dist.fsdp("blocks.*"), "tp": ROWS}


def placements(model: Any) -> dict[str, Any]:
    return {path: leaf.placements for path, leaf in tree.named_leaves(model).items()}


# -- where leaves are -----------------------------------------------------------------------------


def test_leaves_are_cut_as_the_rules_say() -> None:
    with ranks(2, 2, names=("dp", "tp")) as mesh:
        model = small().initialize(0)
        spread = dist.Plan(mesh, **RULES).apply(model)
        found = placements(spread)
        whole_, first, second = Replicate(), Shard(0), Shard(1)
        assert found["embed.weight"] == (whole_, whole_)
        assert found["head.weight"] == (whole_, whole_)
        for block in ("blocks.0", "blocks.1"):
            assert found[f"{block}.norm.weight"] == (first, whole_)
            assert found[f"{block}.attn.q.weight"] == (second, first)
            assert found[f"{block}.attn.q.bias"] == (whole_, first)  # no dimension is left
            assert found[f"{block}.attn.o.weight"] == (first, second)
            assert found[f"{block}.attn.o.bias"] == (first, whole_)
        for one, other in zip(tree.leaves(spread), tree.leaves(model), strict=True):
            assert torch.equal(whole(one), other)


def test_the_blocks_of_a_stack_are_cut_as_those_of_a_tuple() -> None:
    with ranks(2, 2, names=("dp", "tp")) as mesh:
        found = placements(dist.Plan(mesh, **RULES).apply(small(3, stacked=True).initialize(0)))
    assert found["blocks.block.norm.weight"] == (Shard(1), Replicate())
    assert found["blocks.block.attn.q.weight"] == (Shard(2), Shard(1))
    assert found["blocks.block.attn.o.weight"] == (Shard(1), Shard(2))


def test_fsdp_cuts_the_first_dimension_that_divides() -> None:
    class Odd(parallax.Module):
        tall: parallax.Parameter
        short: parallax.Parameter
        number: parallax.Parameter

    odd = Odd(torch.ones(8, 3), torch.ones(3, 4, 8), torch.tensor(1.0))
    with ranks(4, names=("dp",)) as mesh:
        found = placements(dist.Plan(mesh, dp=dist.fsdp("**")).apply(odd))
    assert found == {"tall": (Shard(0),), "short": (Shard(1),), "number": (Replicate(),)}


def test_dimensions_of_size_one_change_nothing() -> None:
    model = small().initialize(0)
    with ranks(1, 4, names=("dp", "tp")) as mesh:
        found: Any = dist.Plan(mesh, **RULES).apply(model)
        assert found.head.weight.device_mesh.mesh_dim_names == ("tp",)
        assert placements(found)["blocks.0.up.weight"] == (Shard(0),)
    lone = dist.Plan(dist.mesh(dp=1, tp=1), **RULES)
    assert lone.apply(model) is model
    assert lone.gather(model) is not None


def test_a_tied_leaf_is_placed_once_by_whichever_of_its_paths() -> None:
    class Tied(parallax.Module):
        one: nn.Linear
        two: nn.Linear

    layer = nn.Linear(4, 4, bias=False).initialize(0)
    tied = Tied(layer, layer.replace())
    with ranks(2, names=("tp",)) as mesh:
        found: Any = dist.Plan(mesh, tp={"two.weight": 1}).apply(tied)
        assert found.one.weight is found.two.weight
        assert found.one.weight.placements == (Shard(1),)


class Keyed(parallax.Module):
    key: random.Key
    norm: nn.BatchNorm1d


def test_what_is_no_number_stays_as_it_is() -> None:
    with ranks(2, names=("dp",)) as mesh:
        plan = dist.Plan(mesh, dp=dist.replicate())
        found: Any = plan.apply(Keyed(random.key(3), nn.BatchNorm1d(3)).initialize(0))
        assert type(found.key.data) is torch.Tensor
        assert found.norm.num_batches_tracked.placements == (Replicate(),)
        assert plan.apply(nn.Linear(2, 3).initialize(0).eval()).mode == "eval"
        assert plan.apply(nn.Linear(2, 3).initialize(0).reset(0)).weight.requires_grad


def test_a_spread_tree_is_placed_anew() -> None:
    model = small().initialize(0)
    with ranks(2, 2, names=("dp", "tp")) as mesh:
        plan = dist.Plan(mesh, **RULES)
        other = dist.Plan(mesh, dp=dist.replicate(), tp={"head.weight": 1, "embed.weight": 0})
        with pytest.raises(ValueError, match="does not divide"):
            dist.Plan(mesh, dp=dist.replicate(), tp={"head.weight": 0}).apply(model)
        found = plan.apply(other.apply(model))
        assert placements(found) == placements(plan.apply(model))
        for one, leaf in zip(tree.leaves(found), tree.leaves(model), strict=True):
            assert torch.equal(whole(one), leaf)


def test_a_tree_is_put_together_again() -> None:
    model = small().initialize(0)
    with ranks(2, 2, names=("dp", "tp")) as mesh:
        plan = dist.Plan(mesh, **RULES)
        found: Any = plan.gather(plan.apply(model))
        for one, leaf in zip(tree.leaves(found), tree.leaves(model), strict=True):
            assert not isinstance(one, DTensor)
            assert torch.equal(whole(one), leaf)


# -- what is refused ------------------------------------------------------------------------------


PLAN: Any = dist.Plan
MESH: Any = dist.mesh
SIZES = {"dp": 2, "tp": 2}


@pytest.mark.parametrize(
    ("rules", "error", "said"),
    [
        ({"tp": {"**.upp.*": 0}}, LookupError,
         r"the rule tp=\{'\*\*.upp.\*': 0\} matches nothing: nothing in Transformer is at"),
        ({"tp": {}, "dp": dist.fsdp("block.*")}, LookupError,
         r"the rule dp=fsdp\('block.\*'\) matches nothing"),
        ({"tp": {"head.weight": 0}}, ValueError,
         r"tp=\{'head.weight': 0\} cuts dimension 0 of head.weight, which has 3 entries, for 2"),
        ({"tp": {"head.*": 1}}, ValueError,
         r"cuts dimension 1 of head.bias, whose shape is \(3,\)"),
        ({"tp": {"**.up.*": 0, "blocks.0.**": 0}}, ValueError,
         r"blocks.0.up.weight is claimed by two rules, tp=\{'\*\*.up.\*': 0\} and tp="),
        ({"tp": {"**.up.*": 0}, "dp": {"**.up.weight": 0}}, ValueError,
         r"dimension 0 of blocks.0.up.weight is claimed by two rules, one for dp and tp="),
        ({"tp": {}, "dp": dist.fsdp("blocks.*", "blocks.*.attn")}, ValueError,
         r"attn.q.weight is claimed by two rules, dp=fsdp\('blocks.\*'\), which gathers blocks.0"),
    ],
)  # fmt: skip
def test_rules_that_do_not_fit_are_refused(rules: Any, error: Any, said: str) -> None:
    with ranks(2, 2, names=("dp", "tp")) as mesh, pytest.raises(error, match=said):
        dist.Plan(mesh, **{"dp": dist.replicate(), **rules}).apply(small().initialize(0))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: PLAN(SIZES, dp=dist.replicate(), pp={}), ValueError,
         r"Plan\(pp=\): the mesh has no dimension 'pp'; it has 'dp', 'tp'"),
        (lambda: PLAN(SIZES, dp=dist.replicate()), ValueError, "no rule for 'tp'"),
        (lambda: PLAN(SIZES, dp="blocks", tp={}), TypeError, "dp=.*expected dist.replicate"),
        (lambda: PLAN(SIZES, dp=dist.replicate, tp={}), TypeError, r"Call it: dp=dist.repl"),
        (lambda: PLAN(SIZES, dp=dist.replicate(), tp={"a": 0.5}), TypeError, "'a': 0.5"),
        (lambda: PLAN(4), TypeError, r"expected a mesh, .* got 4. Write dist.Plan\(dist.mesh"),
        (lambda: dist.Plan({"dp": 0}), ValueError, "a size is at least 1"),
        (lambda: dist.fsdp(), TypeError, r"Write dist.fsdp\('blocks.\*'\)"),
        (lambda: dist.mesh(), TypeError, "give each dimension a name and a size"),
        (lambda: MESH(dp="2"), TypeError, r"dist.mesh\(dp=\): the size .* got '2'"),
        (lambda: dist.mesh(dp=2, tp=2), RuntimeError,
         r"there is no process group. Start 4 processes with torchrun --nproc-per-node 4"),
        (lambda: PLAN(SIZES, dp=dist.replicate(), tp={}).apply(small().initialize(0)), RuntimeError,
         r"Plan.apply: this plan has the sizes of a mesh and no processes"),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_refused(make: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        make()


def test_a_mesh_must_be_of_all_processes_and_have_names() -> None:
    with ranks(4) as mesh:
        with pytest.raises(ValueError, match=r"dist.mesh\(dp=3\) is for 3 process.* has 4"):
            dist.mesh(dp=3)
        with pytest.raises(TypeError, match="have no names"):
            dist.Plan(mesh, dp=dist.replicate())


def test_trees_that_cannot_be_placed_are_refused() -> None:
    with ranks(2, names=("dp",)) as mesh:
        plan = dist.Plan(mesh, dp=dist.replicate())
        with pytest.raises(UninitializedError, match=r"embed.weight has no .*\(0, plan=plan\)"):
            plan.apply(small())
        model = small().initialize(0)
        used = model.reset(0)
        with pytest.raises(RuntimeError, match=r"embed.weight was computed from others"):
            plan.apply(tree.map(lambda leaf: 2 * leaf, used))
        with pytest.raises(TypeError, match=r"a torch\.nn\.Module"):
            plan.apply(torch.nn.Linear(2, 2))
        with pytest.raises(ValueError, match=r"rank=5\): there are 2"):
            plan.gather(model, 5)
        with pytest.raises(AttributeError, match="plans are immutable"):
            plan.mesh = None  # type: ignore[assignment]  # what is tried
