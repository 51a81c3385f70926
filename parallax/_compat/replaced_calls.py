"""Other functions in the place of torch's where dynamo traces derivatives of derivatives.

A mode would do the same, and have dynamo follow Python for every operator.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from parallax._compat import dynamo, functorch, trace_derivatives

__all__ = ["replace_in_traces"]

_installed: list[bool] = []


def replace_in_traces(orders: Mapping[Any, int], replacement: Callable[..., Any]) -> None:
    """Has dynamo trace another function in place of some of torch's, from now on; once.

    Args:
        orders: the functions, and of each the least number of derivatives for which it is replaced.
        replacement: takes the function and its arguments.
    """
    if _installed:
        return
    _installed.append(True)
    from torch._dynamo.variables import tensor, torch

    function_variable: Any = torch.TorchInGraphFunctionVariable
    tensor_variable: Any = tensor.TensorVariable
    call_function, call_method = function_variable.call_function, tensor_variable.call_method
    methods = {function.__name__: function for function in orders if _is_method(function)}

    def function_called(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        if _is_replaced(tx, orders.get(self.value)):
            return _called(tx, replacement, [self, *args], kwargs)
        return call_function(self, tx, args, kwargs)

    def method_called(self: Any, tx: Any, name: str, args: Any, kwargs: Any) -> Any:
        function = methods.get(name)
        if function is not None and _is_replaced(tx, orders[function]):
            own = _variable(tx, function)
            return _called(tx, replacement, [own, self, *args], kwargs)
        return call_method(self, tx, name, args, kwargs)

    function_variable.call_function = function_called
    tensor_variable.call_method = method_called


def _is_method(function: Any) -> bool:
    return getattr(Tensor, function.__name__, None) is function


def _is_replaced(tx: Any, order: int | None) -> bool:
    if order is None or not trace_derivatives.is_noted(tx.output):
        return False
    if getattr(tx.output, _WITHIN, False):
        return False
    count = sum(functorch.derivatives_running())
    return count >= order or count + int(dynamo.differentiated_outside()) >= order


_WITHIN = "parallax_replaces"


@contextmanager
def _replacing(output: Any) -> Iterator[None]:
    """Within it nothing is replaced."""
    setattr(output, _WITHIN, True)
    try:
        yield
    finally:
        setattr(output, _WITHIN, False)


def _called(tx: Any, replacement: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with _replacing(tx.output):
        return _variable(tx, replacement).call_function(tx, args, kwargs)


def _variable(tx: Any, value: Any) -> Any:
    from torch._dynamo.variables.base import VariableTracker

    return VariableTracker.build(tx, value)
