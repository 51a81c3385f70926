"""``compile``: whole functions of modules as one graph, with the trees left outside."""

from parallax.compiler.function import compile  # noqa: A004  # torch's name

__all__ = ["compile"]
