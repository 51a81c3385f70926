"""Things to run: small, complete programs. `python -m parallax.examples` lists them."""

from parallax.examples._digit_pictures import confusion_table, digit_pictures
from parallax.examples._digits import Digits
from parallax.examples._digits import load as load_digits

__all__ = ["Digits", "confusion_table", "digit_pictures", "load_digits"]
