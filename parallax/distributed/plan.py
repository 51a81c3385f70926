"""``Plan``: how a model is spread over a mesh, as data beside the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, overload

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from parallax._compat import sharding_rules, shards
from parallax._errors.arguments import check_module, shown
from parallax.distributed.agreement import agree
from parallax.distributed.batches import batches
from parallax.distributed.checks import check_rank, refuse_declared
from parallax.distributed.description import Description, describe
from parallax.distributed.meshes import Sizes, cutting, sizes_of
from parallax.distributed.parts import marked
from parallax.distributed.placements import Placed, placed_leaves
from parallax.distributed.rules import (
    FullyShard,
    Replicated,
    Rule,
    checked_rule,
    fsdp,
    replicate,
    sequence_of,
)
from parallax.distributed.shares import share, spread
from parallax.random.shares import Share
from parallax.tree.arguments import check_tree
from parallax.tree.places import Survey

__all__ = ["FullyShard", "Plan", "Replicated", "fsdp", "replicate"]

T = TypeVar("T")


class Plan:
    """How a model is spread over a mesh: a rule for each dimension of the mesh.

    A plan is data beside the model. It changes neither the model's class nor its paths, and so
    neither its initial values nor its files. Leaves that it places are ``DTensor``s, which every
    operation of torch takes; over a mesh of one process it places nothing.

    Args:
        mesh: what ``dist.mesh`` returns, or any ``DeviceMesh`` whose dimensions have names. Sizes
            by name stand for a mesh without processes, whose plan can be described.
        **rules: for each dimension of the mesh, by its name, one of

            - ``dist.replicate()``: the batch is cut, every leaf is whole;
            - ``dist.fsdp(*globs)``: the batch is cut, and the leaves of the named parts are;
            - a dict from paths or globs, as in ``tree.select``, to the dimension that the leaves
              there are cut along (tensor parallel). It is counted within one block of a ``Stack``,
              so that one rule fits a tuple of blocks and a ``Stack``;
            - ``dist.tensor_parallel(cuts, sequence=1)``: the same, and activations are cut between
              the layers.

            A dimension of size 1 needs none.

    Attributes:
        mesh: the mesh.
        rules: the rules by the name of their dimension; read-only.
        sizes: the sizes of the mesh by the name of their dimension; read-only.

    Raises:
        TypeError: if the mesh or a rule is none.
        ValueError: if the mesh has no dimension of a rule's name, or a dimension has no rule.

    Example:
        >>> from parallax import distributed as dist
        >>> dist.Plan(dist.mesh(dp=1, tp=1), dp=dist.fsdp("blocks.*"), tp={"**.up.weight": 0})
        Plan({'dp': 1, 'tp': 1}, dp=fsdp('blocks.*'), tp={'**.up.weight': 0})
    """

    __slots__ = ("_cutting", "mesh", "rules", "sizes")

    mesh: DeviceMesh | Sizes
    rules: Mapping[str, Rule]
    sizes: Mapping[str, int]
    _cutting: DeviceMesh | None  # the mesh without dimensions of size 1

    def __init__(self, mesh: DeviceMesh | Sizes, **rules: Rule) -> None:
        sizes = sizes_of(mesh)
        for name in rules:
            if name not in sizes:
                raise ValueError(
                    f"dist.Plan({name}=): the mesh has no dimension {name!r}; it has "
                    f"{', '.join(map(repr, sizes))}. Name one of these, or make "
                    f"dist.mesh({name}=2, ...)"
                )
        rules = {name: checked_rule(name, rule) for name, rule in rules.items()}
        for name, size in sizes.items():
            if size > 1 and name not in rules:
                raise ValueError(
                    f"dist.Plan(...): no rule for {name!r}, a dimension of {size} processes. Write "
                    f"{name}=dist.replicate(), {name}=dist.fsdp('blocks.*') or "
                    f"{name}={{'**.up.weight': 0}}"
                )
        object.__setattr__(self, "mesh", mesh)
        object.__setattr__(self, "rules", MappingProxyType(rules))
        object.__setattr__(self, "sizes", MappingProxyType(sizes))
        found = cutting(mesh) if isinstance(mesh, DeviceMesh) else None
        object.__setattr__(self, "_cutting", found)
        if found is not None:
            sharding_rules.refuse_numbers_on(found)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot set Plan.{name}: plans are immutable. Make another Plan")

    def __repr__(self) -> str:
        rules = "".join(f", {name}={rule!r}" for name, rule in self.rules.items())
        return f"Plan({dict(self.sizes)}{rules})"

    # -- trees ----------------------------------------------------------------------------------

    def apply(self, module: T) -> T:
        """Places the leaves of a module that has values: those of the first process.

        Every process of the mesh calls it. Keys stay as they are, and so does a module over a mesh
        of one process. What is made of the module afterwards, such as an optimizer's state, is
        placed as it is.

        Args:
            module: the module. Leaves that are distributed already are placed anew.

        Returns:
            The module, whose leaves are ``DTensor``s of which each process holds its part.

        Raises:
            LookupError: if a rule matches nothing.
            TypeError: if it is no module.
            RuntimeError: if the plan has sizes alone, or a leaf has a graph.
            UninitializedError: if a leaf has no value yet.
            ValueError: if two rules claim one leaf, a dimension does not divide, or the processes
                gave different plans or modules.

        Example:
            >>> from parallax import distributed as dist, nn
            >>> plan = dist.Plan(dist.mesh(dp=1), dp=dist.replicate())
            >>> model = plan.apply(nn.Linear(2, 3).initialize(0))
        """
        self._require_processes("apply")
        survey, placed = self._agreed("Plan.apply", module, refuse_declared)
        mesh = self._cutting
        if mesh is None:
            return module
        pairs = zip(survey.leaves, placed, strict=True)
        leaves = [leaf if at is None else spread(leaf, at, mesh) for leaf, at in pairs]
        return self.marked(survey.spec.build(leaves))  # type: ignore[no-any-return]  # of its class

    @overload
    def gather(self, tree: T) -> T: ...
    @overload
    def gather(self, tree: T, rank: int) -> T | None: ...
    def gather(self, tree: T, rank: int | None = None) -> T | None:
        """Puts distributed leaves together: a tree of plain tensors.

        Every process of the mesh calls it. One leaf is put together after the other.

        Args:
            tree: a module, or any pytree; an optimizer's state, or gradients.
            rank: the process, by its number in the default group, that gets the tree; the others
                keep nothing. By default all get it.

        Returns:
            The tree; ``None`` in the processes that do not get it.

        Raises:
            TypeError: if ``rank`` is no int.
            ValueError: if there is no such process.

        Example:
            >>> from parallax import distributed as dist, nn, tree
            >>> plan = dist.Plan(dist.mesh(dp=1), dp=dist.replicate())
            >>> model = nn.Linear(2, 3).initialize(0)
            >>> tree.equal(plan.gather(plan.apply(model)), model)
            True
        """
        check_tree("Plan.gather", tree, "tree")
        here = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        check_rank(rank)
        survey = Survey(tree)
        leaves = []
        for leaf in survey.leaves:
            whole = leaf.full_tensor() if shards.is_distributed(leaf) else leaf
            leaves.append(whole if rank is None or rank == here else None)
        if rank is not None and rank != here:
            return None
        return survey.spec.build(leaves)  # type: ignore[no-any-return]  # of the tree's type

    def batches(self, loader: Iterable[T]) -> Iterator[T]:
        """The batches of a loader, of which each process computes with its part.

        Every process iterates over the same loader, with the same order of batches. Each tensor of
        a batch is cut along its first dimension, over the dimensions of the mesh whose rule is
        ``dist.replicate()`` or ``dist.fsdp(...)``; over that of a tensor-parallel rule with a
        ``sequence``, along that dimension.

        Args:
            loader: gives tensors, or containers of them: a ``DataLoader``, a list.

        Returns:
            An iterator over the batches, with ``DTensor``s in place of tensors; over a mesh of one
            process over the batches as they are.

        Raises:
            RuntimeError: if the plan has sizes alone.
            TypeError: if the loader cannot be iterated over.
            ValueError: while iterating, if the rows of a batch do not divide, or the processes have
                other first batches, shapes of a batch, or numbers of batches.

        Example:
            >>> import torch
            >>> from parallax import distributed as dist
            >>> plan = dist.Plan(dist.mesh(dp=1), dp=dist.replicate())
            >>> [x.shape for x in plan.batches(torch.ones(2, 8, 3))]
            [torch.Size([8, 3]), torch.Size([8, 3])]
        """
        self._require_processes("batches")
        if not hasattr(loader, "__iter__") or isinstance(loader, str):
            error = TypeError(
                f"Plan.batches(loader=): expected something that gives batches, got "
                f"{shown(loader)}. Write plan.batches(DataLoader(...)) or plan.batches([x, y])"
            )
            self.raise_in_all("Plan.batches", error)
        mesh = self._cutting
        if mesh is None:
            return iter(loader)
        cuts = {
            name: sequence_of(rule) if isinstance(rule, Mapping) else 0
            for name, rule in self.rules.items()
            if self.sizes[name] > 1
        }
        return batches(loader, mesh, {n: dim for n, dim in cuts.items() if dim is not None})

    def describe(self, module: Any, *, optimizer: Any = None, tokens: int = 0) -> Description:
        """What each process holds and sends in a step, from the plan alone.

        It needs neither memory nor processes: the module may be declared only, or on the meta
        device, and the plan may have sizes in place of a mesh.

        The collectives are those of a step of ``func.grad`` in which each part that ``fsdp`` names
        is called once. Those of tensor parallelism are counted for matrices ``(out, in)`` in pairs
        within one module, the first cut along ``out`` and the second along ``in``, as torch's
        ``ColwiseParallel`` and ``RowwiseParallel`` cut them; what another way to cut needs depends
        on what the model computes, and is not in the table.

        Args:
            module: the module.
            optimizer: one of ``parallax.optim``, whose state is counted as well.
            tokens: how many rows (batch size times length) the linear layers of a process compute
                in a step, for the bytes that tensor parallelism sends.

        Returns:
            A value that prints as tables: of leaves, of bytes, of collectives.

        Raises:
            LookupError: if a rule matches nothing.
            TypeError: if it is no module, or an argument is none of the above.
            ValueError: if two rules claim one leaf, or a dimension does not divide.

        Source: Shoeybi et al., "Megatron-LM", 2019, section 3 (tensor parallelism); Zhao et al.,
        "PyTorch FSDP", 2023, section 3 (fully sharded).

        Example:
            >>> from parallax import distributed as dist, nn
            >>> plan = dist.Plan({"dp": 8, "tp": 2}, dp=dist.fsdp("**"), tp={"weight": 0})
            >>> plan.describe(nn.Linear(1024, 4096)).parameters
            1050624
        """
        check_module("Plan.describe", module)
        if type(tokens) is not int or tokens < 0:
            raise TypeError(
                f"Plan.describe(tokens=): expected the number of rows, an int, got "
                f"{shown(tokens)}. Write tokens=8 * 2048"
            )
        if optimizer is not None and not hasattr(optimizer, "init"):
            raise TypeError(
                f"Plan.describe(optimizer=): expected an optimizer of parallax.optim, got "
                f"{shown(optimizer)}. Write optimizer=optim.AdamW(lr=1e-3)"
            )
        survey = Survey(module)
        placed = placed_leaves(survey, self.sizes, self.rules)
        return describe(survey, placed, self.sizes, self.rules, optimizer, tokens)

    def shares_of(self, module: Any, *facts: str) -> tuple[list[Share | None], str | None]:
        """What ``initialize(plan=)`` asks: of each leaf the share of this process, and the device.

        Args:
            module: the module, which may be declared only.
            *facts: what else must be the same in all processes.

        Returns:
            The shares, with ``None`` for what stays plain, and the type of device.

        Raises:
            LookupError, ValueError, RuntimeError: as ``apply``.
        """
        self._require_processes("initialize")
        _, placed = self._agreed("initialize(plan=)", module, lambda _: None, *facts)
        mesh = self._cutting
        if mesh is None:
            return [None] * len(placed), None
        shares = [None if one is None else share(one, mesh) for one in placed]
        return shares, mesh.device_type

    def marked(self, module: T) -> T:
        """What ``initialize(plan=)`` asks at last: the parts that are gathered in calls, marked.

        Args:
            module: with its leaves placed.

        Returns:
            The module with marks on the parts that ``fsdp`` names, and on no others.
        """
        return marked(module, self._placed(Survey(module)), self.rules)  # type: ignore[no-any-return]  # of its class

    # -- inside ---------------------------------------------------------------------------------

    def _placed(self, survey: Survey) -> list[Placed | None]:
        """For each leaf of a tree where it is held."""
        return placed_leaves(survey, self.sizes, self.rules)

    def _agreed(
        self, what: str, module: Any, check: Callable[[Survey], None], *facts: str
    ) -> tuple[Survey, list[Placed | None]]:
        """A module's survey and ``_placed`` of it, the same in all processes; else an error."""
        found: list[Any] = []

        def lines() -> list[str]:
            check_module(what, module)
            survey = Survey(module)
            check(survey)
            placed = self._placed(survey)
            found.extend((survey, placed))
            structure: Any = survey.spec.parts[0]
            leaves = [
                "a hole stands" if one is None
                else f"{one.path} is {one.dtype}{list(one.shape)} ({one}{', trained' * trained})"
                for one, trained in zip(placed, structure.trainable, strict=True)
            ]  # fmt: skip
            return [f"the plan is {self}", *facts, *leaves]

        if self._cutting is None:
            lines()
        else:
            agree(what, lines, self._cutting)
        return found[0], found[1]

    def raise_in_all(self, what: str, error: Exception) -> NoReturn:
        """Raises an error of this process, and in the others that it did, before they wait."""

        def lines() -> list[str]:
            raise error

        if self._cutting is not None:
            agree(what, lines, self._cutting)
        raise error

    def _require_processes(self, what: str) -> None:
        if not isinstance(self.mesh, DeviceMesh) and any(n > 1 for n in self.sizes.values()):
            sizes = ", ".join(f"{name}={size}" for name, size in self.sizes.items())
            raise RuntimeError(
                f"Plan.{what}: this plan has the sizes of a mesh and no processes, so that it can "
                f"only be described. Start them with torchrun, call "
                f"torch.distributed.init_process_group(), and make it of dist.mesh({sizes})"
            )
