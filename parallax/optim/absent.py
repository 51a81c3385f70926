"""Names of ``torch.optim`` and optax that are not here, and what to write instead."""

from __future__ import annotations

__all__ = ["instead_of"]

_INSTEAD = {
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
    "apply_updates": "model, state = opt.step(model, grads, state)",
    "update_bn": "for x in loader: _, model = effects.collect(lambda m, x: m(x))(model, x)",
    # optax's; the names of its optimizers differ in case
    "adaptive_grad_clip": "optim.ClipAdaptive(0.01), in optim.chain(..., optim.Adam())",
    "add_decayed_weights": "optim.AdamW(weight_decay=0.01)",
    "add_noise": "optim.AddNoise(...), in optim.chain",
    "apply_if_finite": "optim.SkipNonfinite(optim.Adam())",
    "centralize": "optim.Centralize(), in optim.chain",
    "clip_by_global_norm": "optim.chain(optim.ClipNorm(1.0), optim.Adam())",
    "ema": "optim.EMA(0.999)",
    "global_norm": "tree.norm(grads)",
    "incremental_update": "optim.EMA(0.999)",
    "masked": 'optim.Split({"**.bias": optim.SGD()}, rest=optim.Adam())',
    "multi_transform": 'optim.Split({"**.bias": optim.SGD()}, rest=optim.Adam())',
    "MultiSteps": "optim.Accumulate(optim.Adam(), 4)",
    "scale_by_schedule": "optim.Adam(lr=schedule), where schedule is a function of the step",
}


def instead_of(name: str) -> str:
    """What to write instead of a name of ``torch.optim`` or optax; empty for any other.

    Example:
        >>> instead_of("swa_utils")
        '. Write: optim.SWA(), optim.EMA(0.999) and optim.schedules.SWALR'
        >>> instead_of("Adma")
        ''
    """
    from parallax import optim  # which asks this file for names that it does not have
    from parallax.optim import schedules

    alike = [mine for mine in optim.__all__ if mine.lower() == name]
    if alike:
        return f". Write: optim.{alike[0]}"
    if name in schedules.__all__:
        return f". Write: optim.schedules.{name}"
    line = _INSTEAD.get(name)
    return "" if line is None else f". Write: {line}"
