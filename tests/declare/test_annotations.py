"""The annotation decides."""

import torch

from parallax import Buffer, Module, Parameter


def test_a_buffer_and_a_parameter_differ_by_annotation_alone() -> None:
    class Both(Module):
        a: Parameter
        b: Buffer

    both = Both(torch.ones(1), torch.ones(1)).reset(0)
    assert both.a.requires_grad and not both.b.requires_grad
