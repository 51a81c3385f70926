"""``compile``: whole functions of modules as one graph, with the trees left outside."""

from parallax.compiler.function import compile  # noqa: A004  # torch's name
from parallax.compiler.loading import load_compiled

__all__ = ["compile", "load_compiled"]
