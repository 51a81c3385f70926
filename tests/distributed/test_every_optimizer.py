"""Every optimizer in two processes, whose leaves are copies or parts, against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from parallax import distributed as dist
from parallax import func, nn, optim, tree
from tests.meshes import run, whole

OPTIMIZERS: list[Any] = [
    optim.ASGD(1e-2), optim.Adadelta(1.0), optim.Adafactor(1e-2), optim.Adagrad(1e-2),
    optim.Adam(1e-2, amsgrad=True), optim.AdamW(1e-2), optim.Adamax(1e-2), optim.LAMB(1e-2),
    optim.Lion(1e-3), optim.Muon(1e-2), optim.NAdam(1e-2), optim.RAdam(1e-2),
    optim.RMSprop(1e-2, momentum=0.9, centered=True), optim.Rprop(1e-2),
    optim.SGD(1e-2, momentum=0.9, nesterov=True),
]  # fmt: skip
X = torch.arange(32.0, dtype=torch.float64).view(8, 4).sin()


def net(opt: Any) -> Any:
    matrices = isinstance(opt, optim.Muon)  # which steps nothing else
    layers: list[Any] = [
        nn.Linear(4, 8, bias=not matrices),
        torch.tanh,
        nn.Linear(8, 4, bias=not matrices),
    ]
    return tree.to(nn.Sequential(*layers).initialize(0), dtype=torch.float64)


def trained(model: Any, opt: Any, x: Tensor, donate: bool = False) -> Any:
    state = opt.init(model)
    for _ in range(3):
        grads = func.grad(lambda model: model(x).square().mean())(model)
        model, state = opt.step(model, grads, state, donate=donate)
    return model


def _train(rank: int, folder: str) -> None:
    dp, tp = (init_device_mesh("cpu", (2,), mesh_dim_names=(name,)) for name in ("dp", "tp"))
    plans = {
        "replicate": dist.Plan(dp, dp=dist.replicate()),
        "fsdp": dist.Plan(dp, dp=dist.fsdp("layers.*")),
        "tp": dist.Plan(tp, tp={"layers.0.*": 0, "layers.2.weight": 1}),
    }
    for opt in OPTIMIZERS:
        expected = trained(net(opt), opt, X)
        for name, plan in plans.items():
            for donate in (False, True):
                (rows,) = plan.batches([X])
                found = trained(plan.apply(net(opt)), opt, rows, donate)
                for one, other in zip(tree.leaves(found), tree.leaves(expected), strict=True):
                    message = f"{opt}, {name}, donate={donate}"
                    torch.testing.assert_close(whole(one), other, rtol=0, atol=1e-12, msg=message)


def test_every_optimizer_steps_as_in_one_process(tmp_path: Path) -> None:
    run(_train, tmp_path, 2)
