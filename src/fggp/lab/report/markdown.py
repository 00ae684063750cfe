"""The report as Markdown."""

from collections.abc import Iterable, Sequence

from fggp.lab.report.canvas import Picture
from fggp.lab.report.content import Accuracy, Compared, Content, Ranks, Section
from fggp.lab.report.wording import how_to_read


def render(content: Content) -> str:
    """Return the report's text; pictures are named by file, to lie in the same folder."""
    parts = ["# Pruning methods compared", f"**{escape(content.headline)}**", escape(" · ".join(content.summary))]
    for section in content.sections:
        parts += _section(section)
    if content.ranks is not None:
        parts += _ranks(content.ranks)
    parts += ["## How to read this", _list(how_to_read(content.by))]
    if content.notes:
        parts += ["## Left out", _list(content.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section) -> list[str]:
    across = (
        ["method", *(f"{column} sparsity" for column in section.columns)] if section.lines else ["method", "accuracy"]
    )
    width = len(across) - 1
    body = [[escape(name), *[_accuracy(dense)] * width] for name, dense in section.dense.items()]
    body += [[escape(line.label), *map(_accuracy, line.cells)] for line in section.lines]
    before = [picture for picture in section.pictures if picture.kind == "accuracy"]
    parts = [f"## {escape(section.title)}", *map(_picture, before), _table(across, body), _list(section.remarks)]
    if section.differences:
        head = [f"minus {escape(section.baseline)}", *across[1:]]
        body = [[escape(line.label), *map(_compared, line.cells)] for line in section.differences]
        drawn = [picture for picture in section.pictures if picture.kind == "differences"]
        parts += ["### Paired differences", *map(_picture, drawn), _table(head, body)]
    after = [picture for picture in section.pictures if picture.kind not in ("accuracy", "differences")]
    return [*parts, *map(_picture, after)]


def _ranks(ranks: Ranks) -> list[str]:
    body = [[escape(title), *own] for title, own in ranks.settings]
    body.append(["**average**", *(f"**{average}**" for average in ranks.averages)])
    if ranks.baseline:
        body.append([f"minus {escape(ranks.baseline)}, on average", *map(_compared, ranks.differences)])
    table = _table(["setting", *map(escape, ranks.methods)], body)
    return ["## Ranks", *map(_picture, ranks.pictures), table, escape(ranks.remark)]


def _accuracy(cell: Accuracy | None) -> str:
    if cell is None:
        return ""
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} ({cell.seeds}){' ≈' * cell.close}" + (f" #{cell.rank}" if cell.rank else "")


def _compared(cell: Compared | None) -> str:
    if cell is None:
        return ""
    verdict = f", {cell.verdict}" if cell.verdict else ""
    return f"{cell.text} [{cell.interval}] ({cell.pairs}){verdict}"


def _picture(picture: Picture) -> str:
    return f"![{escape(picture.title)}]({picture.png.name})\n\n*{escape(picture.caption)}*"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def escape(text: str) -> str:
    """Take their meaning from all characters that have one in Markdown, in a table too."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
