"""`fggp report`: from records to a folder with a page, a Markdown file and pictures."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as ConsoleTable

from fggp.atomic import atomic_write
from fggp.lab.report import markdown, page
from fggp.lab.report.canvas import Canvas
from fggp.lab.report.content import Accuracy, Content, Section, compose
from fggp.lab.report.findings import baseline_of, contest
from fggp.lab.report.looks import looks
from fggp.lab.report.pictures import draw
from fggp.lab.report.records import load
from fggp.lab.report.runs import By
from fggp.lab.report.settings import ReportSettings
from fggp.lab.report.tables import rows_of, tabulate

NOTES = 10
"""How many notes the console shows; the report has them all."""


def report(settings: ReportSettings, console: Console) -> Content:
    """Read the records, leave the report in its folder, show the main table, and return what was reported.

    Raises:
        UsageError: no usable record was found, or the baseline is not among their methods.
    """
    loaded = load(settings.paths, settings.by)
    tables = tabulate(loaded.runs)
    baselines = baseline_of(tables, settings.baseline)
    _show_notes(loaded.notes, console)

    settings.out.mkdir(parents=True, exist_ok=True)
    ranking = contest(tables)
    canvas = Canvas(settings.out, looks(rows_of(tables)), settings.by)
    columns = (TextColumn("drawing"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        drawn = draw(canvas, tables, ranking, baselines)
        for _ in progress.track(drawn, total=5 * len(tables) + 1):
            pass
    content = compose(loaded, tables, ranking, baselines, canvas.looks, canvas.pictures)
    files = [settings.out / "report.html", settings.out / "report.md"]
    for file, text in zip(files, (page.render(content), markdown.render(content)), strict=True):
        with atomic_write(file) as target:
            target.write(text.encode(errors="replace"))  # JSON may hold halves of characters
    _show(content, files, console)
    return content


def _show_notes(notes: Sequence[str], console: Console) -> None:
    for note in notes[:NOTES]:
        console.print(f"[yellow]note[/] {escape(note)}", highlight=False, soft_wrap=True)
    if len(notes) > NOTES:
        console.print(f"[yellow]note[/] and {len(notes) - NOTES} more: see the report", highlight=False)


def _show(content: Content, files: Sequence[Path], console: Console) -> None:
    for section in content.sections:
        console.print(f"\n{escape(section.title)}", highlight=False)
        console.print(_table(section, content.by))
    console.print(
        f"{content.by} accuracy, % (seeds); bold: the highest; ≈: cannot be told from it\n",
        style="dim",
        highlight=False,
    )
    console.print(f"[bold]{escape(content.headline)}[/]\n", highlight=False, soft_wrap=True)
    for what, shown in zip(("page", "markdown", "pictures"), (*files, files[0].parent / "*.png, *.svg"), strict=True):
        console.print(f"{what:10}{escape(str(shown))}", highlight=False, soft_wrap=True)


def _table(section: Section, by: By) -> ConsoleTable:
    heads = [f"{column} sparsity" for column in section.columns] or [f"{by} accuracy, %"]
    table = ConsoleTable("method")
    for head in heads:
        table.add_column(head, justify="right")
    for name, dense in section.dense.items():
        table.add_row(escape(name), *[_cell(dense)] * len(heads), style="dim")
    for line in section.lines:
        table.add_row(escape(line.label), *map(_cell, line.cells))
    return table


def _cell(cell: Accuracy | None) -> str:
    if cell is None:
        return ""
    text = f"[bold]{cell.text}[/]" if cell.best else cell.text
    return f"{text} ({cell.seeds}){' ≈' if cell.close else '  '}"
