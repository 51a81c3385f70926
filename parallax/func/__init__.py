"""Transforms of functions of modules, named and ordered as in ``torch.func``."""

from parallax.func.grad import grad, grad_and_value

__all__ = ["grad", "grad_and_value"]
