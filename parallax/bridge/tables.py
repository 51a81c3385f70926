"""For speed only: quick calls of a skeleton, and how a visible difference is noticed.

Nothing else depends on it: a skeleton that is not ``quick`` has the tables of ``nn.Module``, and
computes the same. ``skeleton`` uses ``quicken``, ``is_quick`` and ``hasten``; ``undoing`` finds in
``touched`` which tables are not as they were, and asks each to ``renew`` itself.

``nn.Module`` keeps parameters and children in tables and finds them by ``__getattr__``, a Python
function that runs when everything else has failed; and every call looks for hooks. Together that is
a fifth of a small model's time. In a skeleton parameters and children are plain attributes, found
at once, and a call of a module without hooks is one of its forward (``nn.Module`` leaves a place
for that, for compiled modules). All of it is taken back when it would show:

- ``Weights`` has no tensors until it is read; most calls never do.
- Who writes into a table takes the plain attributes of that module away: from then on
  ``nn.Module``'s own lookup finds what is in the table. So ``functional_call`` within a forward
  works, and whatever else swaps tensors.
- ``nn.Module`` asks the table of parameters before it sets any attribute, so a forward that is
  replaced is noticed. A hook is written into ``Hooks``. Either ends the quick calls of the module.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

__all__ = ["Children", "Hooks", "Weights", "hasten", "is_quick", "may_show", "quicken"]

_QUICK = "_compiled_call_impl"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
Touched = list[Any]


def may_show(cls: type[nn.Module], attributes: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether entries of tables can be plain attributes without anybody noticing.

    They cannot where a class looks attributes up in its own way, or where another attribute of the
    same name comes first.
    """
    lookup: Any = cls
    return (
        lookup.__getattr__ is nn.Module.__getattr__
        and lookup.__getattribute__ is object.__getattribute__
        and not any(name in attributes or hasattr(cls, name) for name in names)
    )


def quicken(
    node: nn.Module,
    attributes: Mapping[str, Any],
    weights: Iterable[str],
    below: Mapping[str, Any],
    touched: Touched,
) -> bool:
    """Makes parameters and children plain attributes of a module, if that comes to the same.

    Args:
        node: the module, with its tables filled.
        attributes: what else it will have.
        weights: the names of its parameters.
        below: its children.
        touched: where its tables note that they are not as they were.

    Returns:
        Whether they are: then parameters are written to the module's own ``__dict__``.
    """
    own = vars(node)
    if not may_show(type(node), {**own, **attributes}, [*weights, *below]):
        return False
    children = [name for name in below if name.isidentifier()]
    own["_modules"] = Children(node, below, children, touched)
    own["_parameters"] = Weights(node, own["_parameters"], weights, touched)
    return True


def is_quick(node: nn.Module) -> bool:
    """Whether the parameters of a module are plain attributes."""
    return type(vars(node)["_parameters"]) is Weights


def hasten(node: nn.Module, touched: Touched) -> None:
    """Makes a call of a module one of its forward, if that comes to the same."""
    attributes, cls = vars(node), type(node)
    if (
        "forward" not in attributes
        and _QUICK not in attributes
        and not any(attributes[name] for name in _HOOKS)
        and cls._wrapped_call_impl is nn.Module._wrapped_call_impl
        and cls._call_impl is nn.Module._call_impl
        and getattr(cls, _QUICK) is None
    ):
        for name in _HOOKS:
            attributes[name] = Hooks(node, touched)
        others = dict(attributes)
        attributes.clear()
        # Where it is found fastest: at the same place in the dict of every module.
        attributes[_QUICK] = node.forward
        attributes.update(others)


def _after(prepare: str, method: str) -> Callable[..., Any]:
    """A method of ``dict`` before which the table does something."""
    inherited = getattr(dict, method)

    def prepared(self: Any, *args: Any, **kwargs: Any) -> Any:
        getattr(self, prepare)()
        return inherited(self, *args, **kwargs)

    return prepared


class Hooks(OrderedDict[int, Any]):
    """A table of hooks, empty at first.

    Attributes:
        node: the module.
        touched: where the table notes that it is not as it was.
    """

    def __init__(self, node: nn.Module, touched: Touched) -> None:
        super().__init__()
        self.node = node
        self.touched = touched

    def __setitem__(self, key: int, hook: Any) -> None:
        vars(self.node).pop(_QUICK, None)
        self.touched.append(self)
        super().__setitem__(key, hook)

    def renew(self) -> bool:
        """After a call: forgets the hooks; whether the table can serve another one."""
        self.clear()
        return True

    def __reduce__(self) -> Any:
        return OrderedDict, (list(self.items()),)


class Children(dict[str, Any]):
    """The table of a module's children.

    Attributes:
        node: the module.
        names: the entries that are plain attributes of it at first.
        shown: those that are now: all or none.
        touched: where the table notes that it is not as it was.
    """

    __slots__ = ("names", "node", "shown", "touched")

    def __init__(
        self, node: nn.Module, items: Mapping[str, Any], shown: Iterable[str], touched: Touched
    ) -> None:
        super().__init__(items)
        self.node = node
        self.names = self.shown = tuple(shown)
        self.touched = touched
        for name in self.shown:
            vars(node)[name] = items[name]

    def open(self) -> None:
        """Takes the plain attributes away, for something will be written."""
        for name in self.shown:
            vars(self.node).pop(name, None)
        self.shown = ()
        self.touched.append(self)

    def renew(self) -> bool:
        """After a call: whether the table can serve another one."""
        return False

    __setitem__ = _after("open", "__setitem__")
    __delitem__ = _after("open", "__delitem__")
    __ior__ = _after("open", "__ior__")
    clear = _after("open", "clear")
    pop = _after("open", "pop")
    popitem = _after("open", "popitem")
    setdefault = _after("open", "setdefault")
    update = _after("open", "update")

    def __reduce__(self) -> Any:
        return _again, (type(self), self.node, dict(self.items()), self.shown)


class Weights(Children):
    """The table of a module's parameters, whose tensors are in the plain attributes alone.

    Attributes:
        filled: whether they are in the table, too.
        noted: whether an attribute was set, or looked up without success.
    """

    __slots__ = ("filled", "noted")

    def __init__(
        self, node: nn.Module, items: Mapping[str, Any], shown: Iterable[str], touched: Touched
    ) -> None:
        super().__init__(node, items, shown, touched)
        self.filled = self.noted = False

    def fill(self) -> None:
        """Puts the tensors into the table, for it will be read."""
        if not self.filled:
            self.filled = True
            self.touched.append(self)
            for name in self.shown:
                if name in vars(self.node):  # else nn.Module has removed it, to set another one
                    dict.__setitem__(self, name, vars(self.node)[name])

    def open(self) -> None:
        """Takes the plain attributes away, for something will be written."""
        self.fill()
        super().open()

    def __contains__(self, name: object) -> bool:
        if dict.__contains__(self, name):
            return True
        if not self.noted and name not in vars(self.node)["_buffers"]:
            self.noted = True
            self.touched.append(self)
        if name == "forward":
            vars(self.node).pop(_QUICK, None)
        return False

    def renew(self) -> bool:
        """After a call: forgets the tensors; whether the table can serve another one."""
        if tuple(dict.__iter__(self)) != self.names:
            return False
        none = dict.fromkeys(self.names)
        dict.update(self, none)
        vars(self.node).update(none)
        self.shown = self.names
        self.filled = self.noted = False
        return True

    __hash__ = None  # type: ignore[assignment]  # as dict's
    # What copies a dict in C looks whether __iter__ is dict's own, and reads by these if it is not.
    __iter__ = _after("fill", "__iter__")
    __getitem__ = _after("fill", "__getitem__")
    __eq__ = _after("fill", "__eq__")
    __ne__ = _after("fill", "__ne__")
    __or__ = _after("fill", "__or__")
    __ror__ = _after("fill", "__ror__")
    __repr__ = _after("fill", "__repr__")
    copy = _after("fill", "copy")
    get = _after("fill", "get")
    items = _after("fill", "items")
    values = _after("fill", "values")


def _again(
    cls: type[Children], node: nn.Module, items: dict[str, Any], shown: tuple[str, ...]
) -> Children:
    """A copy of a table; of ``Weights`` one that is filled."""
    made = cls(node, items, shown, [])
    if isinstance(made, Weights):
        made.filled = True
    return made
