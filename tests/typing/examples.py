"""The examples of the docstrings as one program, in which a checker reveals types of results."""

from __future__ import annotations

import ast
import textwrap

from tests.public import DOCUMENTED, docstring, examples_of

__all__ = ["program"]


def program() -> tuple[str, dict[int, str]]:
    """A function for each public name that holds its example, and whose call a line reveals.

    In it a call of the name is ``reveal_type(call)``: what a function returns is called again where
    the example does so, and then the last result is revealed.
    """
    lines = ["# The examples of all docstrings."]
    revealed: dict[int, str] = {}
    for number, (name, value) in enumerate(DOCUMENTED.items()):
        example = ast.parse("".join(examples_of(docstring(value))))
        reveal = _Reveal(name.rpartition(".")[2])
        body = textwrap.indent(ast.unparse(reveal.visit(example)), "    ").split("\n")
        lines.append(f"def example_{number}() -> None:")
        for line in body:
            lines.append(line)
            if "reveal_type(" in line:
                revealed[len(lines)] = name
    return "\n".join(lines) + "\n", revealed


class _Reveal(ast.NodeTransformer):
    def __init__(self, name: str) -> None:
        self.name = name

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function: ast.expr = node
        while isinstance(function, ast.Call):
            function = function.func
        called = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
        if called != self.name:
            return self.generic_visit(node)
        return ast.Call(ast.Name("reveal_type", ast.Load()), [node], [])
