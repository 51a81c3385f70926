"""The UCI handwritten digits, shipped with the package.

Their source and licence are in digits-licence.txt, beside this file.
"""

from __future__ import annotations

import gzip
from importlib import resources
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_IMAGES, _PIXELS, _CLASSES, _BRIGHTEST = 1797, 64, 10, 16
_HOLD_OUT = 5


class Digits(NamedTuple):
    """Images as rows of 64 float32 pixels in [0, 1], and the int64 digit that each one shows."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load() -> Digits:
    """Load the digits, split once and for all into a training part and a test part.

    Of every digit's images, in the order of the file, each fifth one is a test image, so all ten
    digits keep their proportions. The same people wrote both parts: accuracy on the test part
    says how well unseen images are read, not unseen handwriting.

    Returns:
        1,442 images and labels to train on, 355 to test on.

    Example:
        >>> digits = load()
        >>> digits.train_x.shape, digits.test_x.shape
        (torch.Size([1442, 64]), torch.Size([355, 64]))
        >>> digits.test_y.bincount()
        tensor([35, 36, 35, 36, 36, 36, 36, 35, 34, 36])
    """
    packed = resources.files("parallax.examples").joinpath("digits.bin.gz").read_bytes()
    # A bytearray, because torch warns of buffers that it must not write to.
    raw = torch.frombuffer(bytearray(gzip.decompress(packed)), dtype=torch.uint8)
    x = raw[: _IMAGES * _PIXELS].view(_IMAGES, _PIXELS).float() / _BRIGHTEST
    y = raw[_IMAGES * _PIXELS :].long()
    test = _rank_in_class(y) % _HOLD_OUT == _HOLD_OUT - 1
    return Digits(x[~test], y[~test], x[test], y[test])


def _rank_in_class(labels: Tensor) -> Tensor:
    """Number the images of each class 0, 1, 2, … in the order in which they come."""
    seen = F.one_hot(labels, _CLASSES).cumsum(0)
    return seen.gather(1, labels[:, None]).squeeze(1) - 1
