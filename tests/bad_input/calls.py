"""A right call of every public function and class, for ``every_call`` to make wrong ones of."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import parallax
from parallax import (
    Buffer,
    Parameter,
    bridge,
    debug,
    distributed,
    effects,
    func,
    io,
    nn,
    optim,
    random,
    registry,
    tree,
)
from parallax.optim import schedules
from tests.bad_input.calls_of_layers import layers
from tests.bad_input.calls_of_methods import methods
from tests.bad_input.every_call import Subject, fixed
from tests.bad_input.net import Net, net

__all__ = ["SUBJECTS", "UNCALLED"]

UNCALLED = {
    # Errors and types, which nobody constructs.
    *("UninitializedError", "random.KeyReusedError", "effects.EffectError", "debug.ImpureError"),
    *("debug.CheckError", "debug.ShapeError", "debug.trace_counts"),
    *("debug.NonFiniteError", "optim.DonatedError", "tree.Selection", "tree.TreeSpec"),
    *("bridge.Lifted", "bridge.Lowered", "optim.Average", "optim.Scale"),
    *("optim.Accumulated", "optim.Chained", "optim.Skipped", "optim.Splits"),
    *("optim.State", "schedules.Plateau", "schedules.Schedule", "optim.Optimizer", "nn.KVCache"),
    "effects.Call",
    "io.Report",
    "Module",
    "distributed.replicate",
}
"""Public names without arguments to get wrong."""


CHECKS = ["deterministic", "nans", "pure"]
if find_spec("jaxtyping") is None:
    UNCALLED.add("debug.shapes")
else:
    CHECKS.append("shapes")


def keyed(**given: Any) -> Callable[[], dict[str, Any]]:
    """Arguments with a fresh key for each call."""
    return lambda: {"key": random.key(0), **given}


@cache
def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="every_call_")


def file() -> str:
    path = Path(folder().name) / "net.safetensors"
    if not path.exists():
        io.save(net(), path)
    return str(path)


def shards() -> str:
    path = Path(folder().name) / "shards"
    if not path.exists():
        io.save_distributed(net(), path)
    return str(path)


def _loss(model: Any) -> Any:
    return model(torch.ones(3))


def _square(x: Any) -> Any:
    return (x**2).sum()


def _sin(x: Any) -> Any:
    return torch.sin(x)


def _compiled() -> dict[str, Any]:
    path = Path(folder().name) / "square.bin"
    if not path.exists():
        parallax.compile(_square, backend="eager").lower(torch.ones(3)).save(path)
    return {"path": str(path)}


def _writing(verb: str) -> Any:
    return lambda module: getattr(module, verb)(mean=module.mean)


def _with_net(function: Any) -> Any:
    return function(net())


def _tree() -> Iterator[Subject]:
    def one(name: str, kind: str = "numbers", **more: Any) -> Subject:
        call = getattr(tree, name)
        kinds = {"tree": kind, "factor": "number", "device": "device?"}
        kinds |= {"what": "condition", "conditions": "condition"}
        return Subject(f"tree.{name}", call, fixed(tree=net(), **more), kinds)

    for name in ("flatten", "leaves", "structure", "named_leaves"):
        yield one(name, "any tree")
    for name in ("nbytes", "norm", "ravel", "size", "zeros_like"):
        yield one(name)
    yield one("scale", factor=2.0)
    yield one("to", dtype=torch.float64)
    yield one("unstack", "values")
    yield one("partition", conditions=("weight",))
    yield one("select", what=("weight",))
    yield Subject(
        "tree.summary",
        tree.summary,
        lambda: {"module": net()},
        {"module": "numbers", "inputs": "anything", "kwargs": "mapping?"},
    )
    for name in ("add", "sub", "vdot", "lerp"):
        more = {"weight": 0.5} if name == "lerp" else {}
        yield Subject(
            f"tree.{name}",
            getattr(tree, name),
            fixed(one=net(), two=net(), **more),
            {"alpha": "number", "weight": "number"},
        )
    for name in ("equal", "allclose"):  # of other trees they say no
        kinds = {"one": "any tree", "two": "any tree", "rtol": "positive", "atol": "positive"}
        yield Subject(
            f"tree.{name}", getattr(tree, name), lambda: {"one": net(), "two": net()}, kinds
        )
    yield Subject(
        "tree.diff",
        tree.diff,
        lambda: {"one": net(), "two": net()},
        {"one": "any tree", "two": "any tree", "rtol": "positive", "atol": "positive"},
    )
    yield Subject(
        "tree.combine", tree.combine, lambda: {"trees": (net(), net())}, {"trees": "second"}
    )
    for name in ("map", "map_with_path", "update"):
        fn = (lambda p, a, b: a + b) if name == "map_with_path" else (lambda a, b: a + b)
        yield Subject(
            f"tree.{name}",
            getattr(tree, name),
            fixed(fn=fn, tree=net(), rest=(net(),)),
            {"tree": "any tree", "rest": "second"},
        )
    yield Subject(
        "tree.masks",
        tree.masks,
        lambda: {"labels": tree.map(lambda leaf: "all", net())},
        {"labels": "any tree"},
    )
    yield Subject("tree.stack", tree.stack, lambda: {"trees": [net(), net()]}, {"trees": "tuple"})
    yield Subject(
        "tree.tie",
        tree.tie,
        lambda: {"model": net(), "other": net()},
        {"model": "any tree", "other": "second"},
    )
    yield Subject(
        "tree.unflatten",
        tree.unflatten,
        lambda: {"spec": tree.structure(net()), "leaves": tree.leaves(net())},
        {"spec": "mapping", "leaves": "tuple"},
    )
    verbs: dict[str, dict[str, Any]] = {
        "set": {"value": torch.zeros(3)},
        "apply": {"fn": torch.neg},
    }
    for verb, given in verbs.items():
        call = getattr(tree.select(net(), "weight"), verb)
        kinds = {"value": "input"} if verb == "set" else {}
        yield Subject(f"tree.Selection.{verb}", call, fixed(**given), kinds)


def _module() -> Iterator[Subject]:
    model = nn.Linear(3, 2)
    for role in (Parameter, Buffer):
        yield Subject(
            f"core.{role.__name__}",
            role,
            lambda: {"shape": (2,), "init": torch.nn.init.ones_},
            {"shape": "shape", "init": "function", "dtype": "dtype?"},
        )
    yield Subject(
        "core.field",
        parallax.field,
        lambda: {"default": 1},
        {"default_factory": "function", "converter": "function?", "kw_only": "flag?"},
    )
    yield Subject(
        "core.initialize",
        model.initialize,
        lambda: {"rng": 0},
        {"device": "device?", "dtype": "dtype?", "rng": "rng"},
    )
    ready = net().reset(0)
    yield Subject("core.reset", ready.reset, lambda: {"rng": 1}, {"rng": "rng", "mode": "word"})
    yield Subject("core.train", ready.train, lambda: {"rng": 1}, {"rng": "rng?"})
    yield Subject("core.split", ready.split, lambda: {"n": 2}, {"n": "count"})
    yield Subject(
        "core.update",
        ready.update,
        lambda: {"fn": torch.add, "trees": (net(),)},
        {"fn": "function", "trees": "second"},
    )
    yield Subject(
        "core.construct",
        Net,
        lambda: {"weight": torch.ones(3), "mean": torch.ones(3)},
        {"weight": "input", "mean": "input"},
    )
    yield Subject(
        "core.replace",
        lambda weight: net().replace(weight=weight),
        lambda: {"weight": torch.ones(3)},
        {"weight": "input"},
    )
    yield Subject(
        "core.compile",
        parallax.compile,
        lambda: {"fn": _loss, "options": {"backend": "eager"}},
        {"fn": "function?"},  # without one it is a decorator
    )
    yield Subject("core.load_compiled", parallax.load_compiled, _compiled, {"path": "path"})
    yield Subject(
        "core.registry.register",
        registry.register,
        _pair,
        {"cls": "mapping", "flatten": "function", "unflatten": "function", "name": "name?"},
    )


def _pair() -> dict[str, Any]:
    class Pair:
        pass

    return {"cls": Pair, "flatten": lambda p: ((), None), "unflatten": lambda m, c: Pair()}


def _carried(carry: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return carry + x, x


def _func() -> Iterator[Subject]:
    for name in (
        "grad",
        "grad_and_value",
        "hessian",
        "hessian_matrix",
        "jacfwd",
        "jacobian_matrix",
        "jacrev",
    ):
        yield Subject(f"func.{name}", getattr(func, name), lambda: {"func": _loss}, after=_with_net)
    at_numbers = lambda made: made(torch.ones(3))  # noqa: E731  # as the lambdas beside it
    yield Subject("func.laplacian", func.laplacian, lambda: {"func": _square}, after=at_numbers)
    yield Subject("func.divergence", func.divergence, lambda: {"func": _sin}, after=at_numbers)
    yield Subject(
        "func.eval_shape",
        func.eval_shape,
        lambda: {"func": _loss, "args": (net(),)},
        {"func": "function", "args": "anything"},
    )
    yield Subject(
        "func.checkpoint",
        func.checkpoint,
        lambda: {"func": _loss},
        {"func": "function", "policy": "function?"},
        lambda made: made(net()),
    )
    yield Subject(
        "func.per_sample_grad",
        func.per_sample_grad,
        lambda: {"func": lambda m, x: m(x), "in_dims": (None, 0)},
        {"in_dims": "tuple?"},
        lambda made: made(net(), torch.ones(2, 3)),
    )
    yield Subject(
        "func.per_sample_norms",
        func.per_sample_norms,
        lambda: {"func": lambda m, x: m(x), "in_dims": (None, 0)},
        {"in_dims": "tuple?"},
        lambda made: made(net(), torch.ones(2, 3)),
    )
    yield Subject(
        "func.clipped_grad",
        func.clipped_grad,
        lambda: {"func": lambda m, x: m(x), "max_norm": 1.0, "in_dims": (None, 0)},
        {"in_dims": "tuple?"},
        lambda made: made(net(), torch.ones(2, 3)),
    )
    yield Subject(
        "func.ensemble_grad",
        func.ensemble_grad,
        lambda: {"func": _loss},
        {"in_dims": "tuple?"},
        lambda made: made(tree.stack([net(), net()])),
    )
    yield Subject(
        "func.vmap",
        func.vmap,
        lambda: {"func": _square},
        {"in_dims": "pair", "out_dims": "pair"},
        lambda made: made(torch.ones(2, 3)),
    )
    for name in ("jvp", "hvp"):
        kinds = {"primals": "tuple", "tangents": "tuple"}
        yield Subject(
            f"func.{name}",
            getattr(func, name),
            lambda: {"func": _loss, "primals": (net(),), "tangents": (net(),)},
            kinds,
        )
    yield Subject(
        "func.jet",
        func.jet,
        lambda: {"func": _loss, "primals": (net(),), "series": ((net(), None),)},
        {"primals": "tuple", "series": "tuple"},
    )
    for name in ("vjp", "linearize"):
        given = {"func": _loss, "primals": (net(),)}
        # A tensor can be differentiated, too: it is the function that does not take it.
        yield Subject(f"func.{name}", getattr(func, name), fixed(**given), {"primals": "numbers"})
    ones = torch.ones(3)
    for name in ("custom_vjp", "custom_jvp"):
        yield Subject(
            f"func.{name}",
            getattr(func, name),
            fixed(fun=_square),
            {"fun": "function", "nondiff_argnums": "int"},
        )
    for name in ("argmin", "fixed_point", "root"):
        solved: dict[str, Any] = {
            "init": ones, "args": (ones,), "solver": lambda f, x: x, "linear_solve": "dense",
        }  # fmt: skip
        kinds = {
            "init": "values",
            "args": "tuple",
            "solver": "function",
            "linear_solve": "function",
        }
        yield Subject(
            f"func.{name}", getattr(func, name), fixed(fun=lambda x, a: x - a, **solved),
            {"fun": "function", **kinds},
        )  # fmt: skip
    for name in ("anderson", "newton", "damped_newton"):
        solving: dict[str, Any] = {
            "f": (lambda x: x.square().sum()) if name == "damped_newton" else lambda x: x / 2,
            "x": ones, "tol": 1e-3, "max_steps": 50,
        }  # fmt: skip
        kinds = {"f": "function", "x": "values", "tol": "number?", "max_steps": "int"}
        if name == "anderson":
            solving, kinds = {**solving, "history": 3}, {**kinds, "history": "int"}
        yield Subject(f"func.{name}", getattr(func, name), fixed(**solving), kinds)
    yield Subject(
        "func.cond",
        func.cond,
        fixed(pred=True, true_fn=_square, false_fn=_square, operands=(ones,)),
        {"pred": "pair", "true_fn": "function", "false_fn": "function", "operands": "tuple"},
    )
    yield Subject(
        "func.while_loop",
        func.while_loop,
        fixed(cond_fn=lambda x: False, body_fn=lambda x: (x,), carried_inputs=(ones,)),
        {"cond_fn": "function", "body_fn": "function", "carried_inputs": "tuple"},
    )
    yield Subject(
        "func.fori_loop",
        func.fori_loop,
        fixed(lower=0, upper=2, body_fun=lambda i, x: x, init_val=ones),
        {"body_fun": "function", "init_val": "values?"},
    )
    yield Subject(
        "func.associative_scan",
        func.associative_scan,
        fixed(combine_fn=torch.add, xs=torch.ones(2, 3)),
        {"combine_fn": "function", "xs": "values"},
    )
    yield Subject(
        "func.scan",
        func.scan,
        lambda: {"combine_fn": _carried, "init": torch.ones(3), "xs": torch.ones(2, 3)},
        {"combine_fn": "function", "init": "values?", "xs": "values"},
    )
    yield Subject(
        "func.functional_call",
        func.functional_call,
        lambda: {
            "module": net(),
            "parameter_and_buffer_dicts": {"weight": torch.zeros(3)},
            "args": (torch.ones(3),),
        },
        {"module": "either module", "parameter_and_buffer_dicts": "mapping"},
    )
    yield Subject(
        "func.stack_module_state",
        func.stack_module_state,
        lambda: {"models": [net(), net()]},
        {"models": "tuple"},
    )


def _random() -> Iterator[Subject]:
    more: dict[str, dict[str, Any]] = {
        "categorical": {"logits": torch.zeros(3)},
        "choice": {"x": 5},
        "permutation": {"x": 5},
        "dropout_mask": {"shape": (3,)},
        "randint": {"shape": (3,), "low": 0, "high": 4},
        "fold_in": {"data": 1},
    }
    kinds = {"x": "count", "p": "positive", "std": "positive", "n": "count", "logits": "tensor"}
    for name in (
        "bernoulli",
        "bits",
        "categorical",
        "choice",
        "clone",
        "dropout_mask",
        "exponential",
        "fold_in",
        "gumbel",
        "normal",
        "permutation",
        "randint",
        "split",
        "truncated_normal",
        "uniform",
    ):
        own = {**kinds, **({"p": "tensor?"} if name == "choice" else {})}
        if name in ("choice", "permutation"):  # a number of things, or a tensor of them
            own["x"] = "shape"
        if name == "fold_in":
            own["data"] = "name"
        yield Subject(f"random.{name}", getattr(random, name), keyed(**more.get(name, {})), own)
    yield Subject("random.key", random.key, lambda: {"seed": 0}, {"seed": "rng"})
    yield Subject("random.Key", random.Key, lambda: {"data": random.key(0).data}, {"data": "rng"})
    yield Subject("random.as_key", random.as_key, lambda: {"rng": 0})
    yield Subject(
        "random.from_state",
        random.from_state,
        lambda: {"state": torch.Generator()},
        {"state": "key"},
    )
    yield Subject("random.reuse", random.reuse)


def _effects() -> Iterator[Subject]:
    for name in ("collect", "capture"):
        verb = {"collect": "emit", "capture": "sow"}[name]
        yield Subject(
            f"effects.{name}",
            getattr(effects, name),
            fixed(fn=_writing(verb)),
            {"fn": "function", "what": "condition"},
            _with_net,
        )

    def emit(merge: Any = None, mean: Any = None) -> Any:
        def emitting(module: Any) -> None:
            module.emit(merge=merge, mean=mean)

        return effects.collect(emitting)(net())

    yield Subject(
        "effects.emit", emit, lambda: {"mean": torch.ones(3)}, {"merge": "word?", "mean": "tensor"}
    )

    def sow(value: Any) -> Any:
        def sowing(module: Any) -> None:
            module.sow(value=value)

        return effects.capture(sowing)(net())

    yield Subject("effects.sow", sow, lambda: {"value": torch.ones(3)}, {"value": "input"})
    model, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).initialize(0), torch.ones(1, 3)
    yield Subject(
        "effects.intervene",
        effects.intervene,
        fixed(fn=nn.Sequential.forward, changes={"layers.0": torch.neg}),
        {"fn": "function", "changes": "mapping"},
        lambda intervened: intervened(model, x),
    )

    def perturb(fn: Any, perturbations: Any) -> Any:
        return effects.perturb(fn)(model, perturbations, x)

    yield Subject(
        "effects.perturb",
        perturb,
        fixed(fn=nn.Sequential.forward, perturbations={"layers.0": torch.ones(1, 2)}),
        {"fn": "function", "perturbations": "mapping"},
    )


def _optim() -> Iterator[Subject]:
    def stepped(opt: Any, bias: bool = True) -> Any:
        model = nn.Linear(3, 2, bias=bias).initialize(0)
        return opt.step(model, tree.zeros_like(model), opt.init(model))

    for name in (
        "ASGD",
        "SGD",
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "Lion",
        "LAMB",
        "AdamWScheduleFree",
        "SGDScheduleFree",
        "Prodigy",
    ):
        kinds = {"eps": "pair"} if name == "Adafactor" else {"eps": "positive"}
        yield Subject(
            f"optim.{name}",
            getattr(optim, name),
            kinds={"weight_decay": "positive", **kinds},
            after=stepped,
        )
    yield Subject(
        "optim.Muon",
        optim.Muon,
        kinds={"weight_decay": "positive"},
        after=lambda opt: stepped(opt, bias=False),
    )
    yield Subject("optim.LBFGS", optim.LBFGS)
    yield Subject(
        "optim.from_torch", optim.from_torch, lambda: {"cls": torch.optim.SGD}, {"cls": "mapping"}
    )
    opt = optim.SGD(0.1)
    yield Subject("optim.SGD.init", opt.init, lambda: {"model": net()}, {"model": "values"})
    yield Subject(
        "optim.SGD.step",
        opt.step,
        lambda: {"model": net(), "grads": net(), "state": opt.init(net())},
        {"model": "values", "grads": "second", "state": "second"},
    )
    for cls, given in {
        "EMA": {},
        "SWA": {},
        "ClipNorm": {"max_norm": 1.0},
        "ClipValue": {"clip_value": 1.0},
        "LossScaler": {},
        "AddNoise": {"eta": 0.1, "rng": 0},
        "Centralize": {},
        "ClipAdaptive": {},
        "Lookahead": {},
    }.items():
        kinds = {"decay": "positive", "clip_value": "positive", "init_scale": "positive"}
        kinds |= {"eta": "positive", "clipping": "positive", "k": "count"}
        yield Subject(f"optim.{cls}", getattr(optim, cls), fixed(**given), kinds)
    yield Subject(
        "optim.Accumulate",
        optim.Accumulate,
        lambda: {"opt": opt, "every": 2},
        {"opt": "optimizer", "every": "count"},
    )
    for name in ("SAM", "ASAM"):
        yield Subject(
            f"optim.{name}",
            getattr(optim, name),
            lambda: {"opt": opt},
            {"opt": "optimizer", "rho": "positive", "eta": "positive"},
        )
    yield Subject(
        "optim.SparseAdam",
        optim.SparseAdam,
        kinds={"eps": "positive"},
        after=lambda opt: opt.init(net()),
    )
    yield Subject(
        "optim.layerwise_lr",
        optim.layerwise_lr,
        lambda: {"model": net(), "layers": ("weight",), "lr": 0.1},
        {"model": "module", "layers": "condition", "decay": "positive"},
        lambda groups: optim.SGD(groups=groups).init(net()),
    )
    yield Subject(
        "optim.SkipNonfinite", optim.SkipNonfinite, lambda: {"opt": opt}, {"opt": "optimizer"}
    )
    yield Subject(
        "optim.Split",
        optim.Split,
        lambda: {"optimizers": {"weight": opt}, "rest": opt},
        {"optimizers": "mapping", "rest": "optimizer?"},
    )
    yield Subject(
        "optim.chain",
        optim.chain,
        lambda: {"parts": (optim.ClipValue(1.0), opt)},
        {"parts": "optimizer"},
    )
    for name, given in {
        "clip_grad_norm": {"max_norm": 1.0},
        "clip_grad_value": {"clip_value": 1.0},
        "clip_per_sample": {"max_norm": 1.0},
    }.items():
        yield Subject(
            f"optim.{name}",
            getattr(optim, name),
            fixed(grads=net(), **given),
            {"grads": "values", "clip_value": "positive", "norm_type": "number"},
        )


def _schedules() -> Iterator[Subject]:
    given: dict[str, dict[str, Any]] = {
        "SWALR": {"lr": 0.1, "swa_lr": 0.01},
        "ChainedScheduler": {"schedules": (schedules.StepLR(0.1, 2), schedules.StepLR(0.1, 3))},
        "ConstantLR": {"lr": 0.1},
        "CosineAnnealingLR": {"lr": 0.1, "T_max": 5},
        "CosineAnnealingWarmRestarts": {"lr": 0.1, "T_0": 5},
        "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2},
        "ExponentialLR": {"lr": 0.1, "gamma": 0.9},
        "LambdaLR": {"lr": 0.1, "lr_lambda": lambda step: 1.0},
        "LinearLR": {"lr": 0.1},
        "MultiStepLR": {"lr": 0.1, "milestones": (2, 4)},
        "MultiplicativeLR": {"lr": 0.1, "lr_lambda": lambda step: 1.0},
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 10},
        "PolynomialLR": {"lr": 0.1},
        "ReduceLROnPlateau": {},
        "SequentialLR": {
            "schedules": (schedules.StepLR(0.1, 2), schedules.StepLR(0.1, 3)),
            "milestones": (3,),
        },
        "StepLR": {"lr": 0.1, "step_size": 2},
        "WarmupCosineLR": {"lr": 0.1, "warmup_steps": 2, "total_steps": 10},
    }
    kinds = {
        "lr_lambda": "function",
        "schedules": "tuple",
        "milestones": "tuple",
        "total_steps": "count",
        "step_size": "count",
        "max_lr": "positive",
        "base_lr": "positive",
        "T_max": "count",
        "T_0": "count",
    }
    for name, arguments in given.items():
        yield Subject(
            f"schedules.{name}",
            getattr(schedules, name),
            fixed(**arguments),
            kinds,
            lambda made: made(3) if callable(made) else made,
        )


def _bridge_and_io() -> Iterator[Subject]:
    yield Subject(
        "bridge.lift",
        bridge.lift,
        lambda: {"module": torch.nn.Linear(2, 2)},
        {"module": "torch module"},
    )
    yield Subject(
        "bridge.lifted_type",
        bridge.lifted_type,
        lambda: {"origin": torch.nn.Linear},
        {"origin": "mapping"},
    )
    yield Subject("bridge.lower", bridge.lower, lambda: {"module": net()}, {"module": "module"})
    yield Subject(
        "bridge.state_dict", bridge.state_dict, lambda: {"module": net()}, {"module": "module"}
    )
    yield Subject(
        "bridge.load_state_dict",
        bridge.load_state_dict,
        lambda: {"module": net(), "mapping": bridge.state_dict(net())},
        {"module": "module", "mapping": "mapping"},
    )
    kinds = {"like": "module", "path": "path", "metadata": "mapping?", "module": "module"}
    kinds |= {"convert": "function?"}
    files: dict[str, Callable[[], dict[str, Any]]] = {
        "load": lambda: {"path": file(), "like": net()},
        "load_distributed": lambda: {"path": shards(), "like": net()},
        "metadata": lambda: {"path": file()},
        "read": lambda: {"path": file()},
        "report": lambda: {"path": file(), "like": net()},
        "save": lambda: {"module": net(), "path": f"{folder().name}/new.pt"},
        "save_distributed": lambda: {"module": net(), "path": f"{folder().name}/new"},
    }
    for name, given in files.items():
        # Any tree is saved, a tensor alone as well.
        own = {"module": "numbers"} if name.startswith("save") else {}
        own |= {"like": "numbers"} if name == "report" else {}  # which no file has to fit
        yield Subject(f"io.{name}", getattr(io, name), given, {**kinds, **own})
    checkpoints = fixed(path=f"{folder().name}/run")
    yield Subject(
        "io.Checkpoints",
        io.Checkpoints,
        checkpoints,
        {"keep": "count?", "suffix": "word"},
    )
    yield Subject(
        "debug.check",
        lambda condition, message: debug.check(condition, message),
        lambda: {"condition": torch.ones(2) > 0, "message": "never"},
        {"condition": "flag", "message": "name"},
    )
    for name in CHECKS:
        yield Subject(
            f"debug.{name}",
            getattr(debug, name),
            lambda: {"fn": _loss},
            {"fn": "function"},
            _with_net,
        )


def _distributed() -> Iterator[Subject]:
    plan = distributed.Plan({"dp": 1}, dp=distributed.replicate())
    yield Subject(
        "distributed.mesh",
        lambda dp, device_type: distributed.mesh(dp=dp, device_type=device_type),
        lambda: {"dp": 1, "device_type": "cpu"},
        {"dp": "count", "device_type": "word?"},
    )
    yield Subject(
        "distributed.Plan",
        lambda mesh, dp: distributed.Plan(mesh, dp=dp),
        lambda: {"mesh": {"dp": 1}, "dp": distributed.replicate()},
        {"mesh": "mapping", "dp": "mapping"},
    )
    yield Subject(
        "distributed.fsdp", distributed.fsdp, lambda: {"globs": ("**",)}, {"globs": "name"}
    )
    yield Subject(
        "distributed.tensor_parallel",
        distributed.tensor_parallel,
        lambda: {"cuts": {"**.weight": 0}, "sequence": 1},
        {"cuts": "mapping", "sequence": "count?"},
    )
    kinds = {"tree": "any tree", "rank": "int?", "module": "module", "loader": "tuple"}
    kinds |= {"optimizer": "optimizer?", "tokens": "count"}
    calls: dict[str, Callable[[], dict[str, Any]]] = {
        "apply": lambda: {"module": net()},
        "batches": lambda: {"loader": (torch.ones(2),)},
        "describe": lambda: {"module": net(), "optimizer": optim.SGD(0.1), "tokens": 1},
        "gather": lambda: {"tree": net(), "rank": 0},
    }
    for name, given in calls.items():
        yield Subject(f"distributed.Plan.{name}", getattr(plan, name), given, kinds)


SUBJECTS: list[Subject] = [
    *_module(),
    *_tree(),
    *_func(),
    *_random(),
    *_effects(),
    *_optim(),
    *_schedules(),
    *_bridge_and_io(),
    *_distributed(),
    *layers(),
    *methods(),
]
"""Every public function and class, room by room."""
