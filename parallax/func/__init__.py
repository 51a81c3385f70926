"""Transforms of functions of modules, named and ordered as in ``torch.func``.

Arguments and results may be modules, or any pytree that holds them. A derivative is taken with
respect to the floating and complex ``Parameter`` leaves that are not frozen, and comes back as a
tree of the same structure with holes (``None``) elsewhere; a tied leaf holds the summed gradient
in each of its places.
"""

from typing import TYPE_CHECKING, Any

from parallax._errors.absent import answer_calls
from parallax.func.associative_scan import associative_scan
from parallax.func.checkpoint import checkpoint
from parallax.func.clipped import clipped_grad, per_sample_norms
from parallax.func.cond import cond
from parallax.func.custom_jvp import custom_jvp
from parallax.func.custom_vjp import custom_vjp
from parallax.func.eval_shape import eval_shape
from parallax.func.forward import jacfwd, jvp, linearize
from parallax.func.functional_call import functional_call
from parallax.func.grad import grad, grad_and_value
from parallax.func.hvp import hvp
from parallax.func.jet import jet
from parallax.func.laplacian import divergence, laplacian
from parallax.func.matrices import hessian_matrix, jacobian_matrix
from parallax.func.per_sample import ensemble_grad, per_sample_grad
from parallax.func.root import argmin, fixed_point, root
from parallax.func.scan import scan
from parallax.func.solvers import anderson, damped_newton, newton
from parallax.func.stack import stack_module_state
from parallax.func.vjp import hessian, jacrev, vjp
from parallax.func.vmap import vmap
from parallax.func.while_loop import fori_loop, while_loop

__all__ = [
    "anderson",
    "argmin",
    "associative_scan",
    "checkpoint",
    "clipped_grad",
    "cond",
    "custom_jvp",
    "custom_vjp",
    "damped_newton",
    "divergence",
    "ensemble_grad",
    "eval_shape",
    "fixed_point",
    "fori_loop",
    "functional_call",
    "grad",
    "grad_and_value",
    "hessian",
    "hessian_matrix",
    "hvp",
    "jacfwd",
    "jacobian_matrix",
    "jacrev",
    "jet",
    "jvp",
    "laplacian",
    "linearize",
    "newton",
    "per_sample_grad",
    "per_sample_norms",
    "root",
    "scan",
    "stack_module_state",
    "vjp",
    "vmap",
    "while_loop",
]

if not TYPE_CHECKING:  # checkers would accept every name otherwise

    def __getattr__(name: str) -> Any:
        from parallax._errors.absent import no_such_name

        raise no_such_name(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)


answer_calls(__name__, globals())
