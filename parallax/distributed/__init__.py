"""One machine to many: how a model is spread over processes, as data beside the model.

The engine is ``torch.distributed``: leaves become ``DTensor``s over a ``DeviceMesh``.
"""

from parallax._compat import sharding_rules
from parallax.distributed.meshes import mesh
from parallax.distributed.plan import Plan
from parallax.distributed.rules import fsdp, replicate, tensor_parallel

__all__ = ["Plan", "fsdp", "mesh", "replicate", "tensor_parallel"]

sharding_rules.complete()


def __dir__() -> list[str]:
    return sorted(__all__)
