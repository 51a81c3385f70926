"""Names of ``torch.optim`` and optax that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["INSTEAD", "instead_of"]

_SCHEDULE = "optim.Adam(lr=optim.schedules.{}); a schedule is a function of the step"
_PACKAGE = "optim.from_torch(cls, lr=...), with a class of a package such as pytorch_optimizer"
_SPLIT = 'optim.Split({"**.bias": optim.SGD()}, rest=optim.Adam())'
_FREEZE = "tree.select(model, path).freeze(); what is frozen has no gradient"

INSTEAD = {
    "lr_scheduler": "optim.schedules, as in optim.Adam(lr=optim.schedules.StepLR(1e-3, 30))",
    "swa_utils": "optim.SWA(), optim.EMA(0.999) and optim.schedules.SWALR",
    "swap_in_optimizer_params_and_state": "model, state = opt.step(model, grads, state); both are "
    "values, so that nothing has to be swapped in",
    "LRScheduler": "optim.schedules.Schedule, or any function of the step",
    "AveragedModel": "average = optim.EMA(0.999).init(model), or optim.SWA()",
    "get_ema_multi_avg_fn": "optim.EMA(0.999)",
    "get_ema_avg_fn": "optim.EMA(0.999)",
    "get_swa_multi_avg_fn": "optim.SWA()",
    "get_swa_avg_fn": "optim.SWA()",
    "clip_grad_norm_": "grads, norm = optim.clip_grad_norm(grads, 1.0)",
    "clip_grad_value_": "grads = optim.clip_grad_value(grads, 1.0)",
    "update_bn": "for x in loader: _, model = effects.collect(lambda m, x: m(x))(model, x)",
    "GradScaler": "optim.LossScaler()",
    # optax's; the names of its optimizers differ in case
    "adabelief": _PACKAGE,
    "adadelta": "optim.Adadelta()",
    "adan": _PACKAGE,
    "adaptive_grad_clip": "optim.ClipAdaptive(0.01), in optim.chain(..., optim.Adam())",
    "add_decayed_weights": "optim.AdamW(weight_decay=0.01)",
    "add_noise": "optim.AddNoise(...), in optim.chain",
    "amsgrad": "optim.Adam(amsgrad=True)",
    "apply_if_finite": "optim.SkipNonfinite(optim.Adam())",
    "centralize": "optim.Centralize(), in optim.chain",
    "clip": "optim.ClipValue(1.0), in optim.chain",
    "clip_by_block_rms": "tree.map(lambda g: g / g.square().mean().sqrt().clamp(min=1), grads)",
    "clip_by_global_norm": "optim.chain(optim.ClipNorm(1.0), optim.Adam())",
    "constant_schedule": "optim.Adam(lr=1e-3); a number is a constant rate",
    "contrib": "optim.Muon, optim.Prodigy, optim.SAM or optim.AdamWScheduleFree",
    "cosine_decay_schedule": _SCHEDULE.format("CosineAnnealingLR(1e-3, T_max=1000)"),
    "cosine_onecycle_schedule": _SCHEDULE.format("OneCycleLR(1e-2, total_steps=1000)"),
    "dpsgd": "func.clipped_grad(loss, ...) for the gradients, optim.SGD() for the step",
    "ema": "optim.EMA(0.999)",
    "exponential_decay": _SCHEDULE.format("ExponentialLR(1e-3, gamma=0.99)"),
    "freeze": _FREEZE,
    "fromage": _PACKAGE,
    "global_norm": "tree.norm(grads)",
    "GradientTransformation": "an object with update(grads, state, model) and init(model), or a "
    "function of the gradients, in optim.chain",
    "incremental_update": "optim.EMA(0.999)",
    "inject_hyperparams": "opt.replace(lr=...), or a tensor as lr, which a compiled step takes",
    "join_schedules": _SCHEDULE.format("SequentialLR(...)"),
    "keep_params_nonnegative": "tree.select(model, 'parameter').apply(lambda p: p.clamp(min=0)), "
    "after the step",
    "l2_loss": "0.5 * F.mse_loss(y, target, reduction='none'), with torch.nn.functional as F",
    "lars": _PACKAGE,
    "linear_schedule": _SCHEDULE.format("LinearLR(1e-3, total_iters=1000)"),
    "lookahead": "optim.chain(opt, optim.Lookahead(5, 0.5))",
    "losses": "torch.nn.functional, or the losses of nn",
    "masked": _SPLIT,
    "multi_transform": _SPLIT,
    "MultiSteps": "optim.Accumulate(optim.Adam(), 4)",
    "nadamw": "optim.NAdam(weight_decay=0.01, decoupled_weight_decay=True)",
    "novograd": _PACKAGE,
    "partition": _SPLIT,
    "piecewise_constant_schedule": _SCHEDULE.format("MultiStepLR(1e-3, milestones=(300, 600))"),
    "polynomial_schedule": _SCHEDULE.format("PolynomialLR(1e-3, total_iters=1000)"),
    "scale": "optim.SGD(lr=...), as the last part of optim.chain",
    "scale_by_adam": "optim.Adam(lr=...)",
    "scale_by_learning_rate": "optim.SGD(lr=...), as the last part of optim.chain",
    "scale_by_rms": "optim.RMSprop(lr=...)",
    "scale_by_schedule": "optim.Adam(lr=schedule), where schedule is a function of the step",
    "schedule_free": "optim.SGDScheduleFree() or optim.AdamWScheduleFree()",
    "schedule_free_adamw": "optim.AdamWScheduleFree()",
    "schedule_free_eval_params": "opt.averaged(model, state)",
    "schedule_free_sgd": "optim.SGDScheduleFree()",
    "set_to_zero": _FREEZE,
    "sigmoid_binary_cross_entropy": "F.binary_cross_entropy_with_logits(logits, targets, "
    "reduction='none'), with torch.nn.functional as F",
    "sm3": _PACKAGE,
    "softmax_cross_entropy": "F.cross_entropy(logits, targets, reduction='none'), with "
    "torch.nn.functional as F",
    "softmax_cross_entropy_with_integer_labels": "F.cross_entropy(logits, targets, "
    "reduction='none'), with torch.nn.functional as F",
    "squared_error": "F.mse_loss(y, target, reduction='none'), with torch.nn.functional as F",
    "trace": "optim.SGD(momentum=0.9)",
    "tree": "tree, from parallax",
    "tree_utils": "tree, from parallax",
    "update": "model, state = opt.step(model, grads, state)",
    "warmup_cosine_decay_schedule": _SCHEDULE.format(
        "WarmupCosineLR(1e-3, warmup_steps=100, total_steps=1000)"
    ),
    "warmup_exponential_decay_schedule": _SCHEDULE.format("SequentialLR(...)"),
    "yogi": _PACKAGE,
    "zero_nans": "optim.SkipNonfinite(opt), or tree.map(torch.nan_to_num, grads)",
}
"""What to write instead of a name."""


def instead_of(name: str) -> str | None:
    """What to write instead of a name of ``torch.optim`` or optax; ``None`` for any other.

    Example:
        >>> instead_of("swa_utils")
        'optim.SWA(), optim.EMA(0.999) and optim.schedules.SWALR'
        >>> instead_of("adamw")
        'optim.AdamW'
        >>> instead_of("Adma")
    """
    from parallax import optim  # which asks this file for names that it does not have
    from parallax.optim import schedules

    if name in INSTEAD:
        return INSTEAD[name]
    if name in schedules.__all__:
        return f"optim.schedules.{name}"
    plain = name.replace("_", "")
    alike = [mine for mine in optim.__all__ if name.islower() and mine.lower() == plain]
    return f"optim.{alike[0]}" if alike else None
