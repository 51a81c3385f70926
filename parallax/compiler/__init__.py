"""``compile``: whole functions of modules as one graph, with the trees left outside."""

from parallax.compiler.function import compile

__all__ = ["compile"]
