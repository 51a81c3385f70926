"""The picture in the README: a few ratios of a record, as an SVG file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.records import Record

_ROW, _LABELS, _UNIT = 46, 330, 300  # in pixels: height of a row, width of the labels and of 1.0
_AXIS = "time relative to the reference, shorter is faster"


@dataclass(frozen=True)
class Headline:
    """A row of a record, and what the picture says of it.

    Attributes:
        part: the part of the benchmarks.
        question: the question of that part.
        row: the row of its answer.
        says: what was measured.
        than: what the reference is.
    """

    part: str
    question: str
    row: str
    says: str
    than: str


HEADLINES = (
    Headline("call", "a 3-layer MLP on one example", "parallax",
             "forward of a small MLP", "nn.Module"),
    Headline("grad", "gradient of a 3-layer MLP, functional", "parallax func.grad_and_value",
             "functional gradient of a small MLP", "torch.func"),
    Headline("vmap", "gradients of MLP for each of 64 examples", "parallax func.per_sample_grad",
             "64 per-sample gradients of an MLP", "torch.func"),
    Headline("tree", "map of the identity, 150 leaves", "tree.map",
             "tree.map over 150 leaves", "optree, nested dict"),
    Headline("macro", "a step of training the digits MLP", "parallax, compiled",
             "compiled training step of an MLP", "nn.Module, eager"),
    Headline("compile", "compiled Adam step of a 2-layer GPT", "parallax.compile of the whole step",
             "compiled Adam step of a small GPT", "nn.Module, compiled"),
)  # fmt: skip


def picture(record: Record) -> str:
    """The headlines that a record has, as bars: SVG text."""
    found = list(_found(record))
    height = _ROW * len(found) + 40
    head = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}"'
    lines = [
        f'<svg {head} font-size="13" font-family="sans-serif">',
        f'<rect width="760" height="{height}" fill="white"/>',
        *[line for place, pair in enumerate(found) for line in _bar(*pair, 10 + place * _ROW)],
        f'<text x="{_LABELS}" y="{height - 12}" fill="#555">{_AXIS}</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _found(record: Record) -> Iterator[tuple[Headline, float]]:
    rows = {
        (answer.part, answer.question, row.name): round(row.ratio, 3)  # as the page shows it
        for answer in record.answers
        if not answer.all_threads
        for row in answer.rows
    }
    for headline in HEADLINES:
        ratio = rows.get((headline.part, headline.question, headline.row))
        if ratio is not None:
            yield headline, ratio


def _bar(headline: Headline, ratio: float, top: int) -> Sequence[str]:
    """The label, the bar and its number, above a thin bar for the reference."""
    width = round(ratio * _UNIT)
    says, than = escape(headline.says), escape(headline.than)
    grey, beside = 'font-size="11" fill="#555"', _LABELS + _UNIT + 6
    return (
        f'<text x="{_LABELS - 12}" y="{top + 18}" text-anchor="end">{says}</text>',
        f'<rect x="{_LABELS}" y="{top + 4}" width="{width}" height="18" fill="#3f51b5"/>',
        f'<text x="{_LABELS + width + 6}" y="{top + 18}" font-weight="bold">{ratio:.2f}</text>',
        f'<rect x="{_LABELS}" y="{top + 24}" width="{_UNIT}" height="6" fill="#c5cae9"/>',
        f'<text x="{beside}" y="{top + 31}" {grey}>{than}</text>',
    )
