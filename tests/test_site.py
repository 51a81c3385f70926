"""What the site adds to the pages: Markdown of docstrings, links, formulas, the list of names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import types
from typing import Any

import pytest

import parallax
from tests.guides import ROOT

pytest.importorskip("latex2mathml", reason="the extra 'docs' builds the site")

SITE = ROOT / "parallax/docs/site"


def load(name: str) -> Any:
    """A file of the site, which is in no package."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", SITE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load("hooks")


def rooms() -> dict[str, types.ModuleType]:
    """The public modules by their names."""
    named = {name: getattr(parallax, name) for name in parallax.__all__}
    modules = {f"parallax.{name}": m for name, m in named.items() if inspect.ismodule(m)}
    return modules | {"parallax.optim.schedules": parallax.optim.schedules}


def test_every_public_name_is_known() -> None:
    known = hooks.public()
    for room, module in rooms().items():
        for name in module.__all__:
            if not inspect.ismodule(getattr(module, name)):
                assert known[f"{room}.{name}"].endswith(f".{name}"), f"{room}.{name}"


def test_every_room_has_a_page() -> None:
    pages = [page.read_text() for page in (SITE.parent / "reference").glob("*.md")]
    for module in rooms().values():
        assert any(f"::: {module.__name__}\n" in page for page in pages), module.__name__


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (
            "<code>func.grad</code>",
            '<autoref identifier="parallax.func.grad"><code>func.grad</code></autoref>',
        ),
        (
            "<code>Selection</code>",
            '<autoref identifier="parallax.tree.Selection"><code>Selection</code></autoref>',
        ),
        ("<code>map</code>", "<code>map</code>"),  # may be an argument
        ("<code>torch.func.grad</code>", "<code>torch.func.grad</code>"),
        ('<a href="x"><code>func.grad</code></a>', '<a href="x"><code>func.grad</code></a>'),
        ("<pre><code>func.grad</code></pre>", "<pre><code>func.grad</code></pre>"),
    ],
)
def test_public_names_become_links(html: str, expected: str) -> None:
    page = types.SimpleNamespace(title="parallax.tree")
    assert hooks.on_page_content(html, page=page) == expected


def test_formulas_become_mathml() -> None:
    page = types.SimpleNamespace(title="parallax.nn")
    html = hooks.on_page_content(r'<span class="arithmatex">\(a &lt; b\)</span>', page=page)
    assert html.startswith('<span class="formula"><math') and html.endswith("</math></span>")
    assert "<mi>a</mi><mo>&#x0003C;</mo><mi>b</mi>" in html


def test_docstrings_become_markdown() -> None:
    extension = load("extension")
    text = "The square :math:`x^2`.\n\nExample:\n    >>> 1\n    1\n"
    expected = "The square \\(x^2\\).\n\nExamples:\n    >>> 1\n    1\n"
    assert extension.as_markdown(text) == expected
