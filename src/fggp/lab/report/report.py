"""`fggp report`: makes a folder with a page, a Markdown file and pictures from records."""

from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape

from fggp.atomic import atomic_write
from fggp.lab.report import markdown, page
from fggp.lab.report.findings import baseline_of, contest
from fggp.lab.report.pictures import draw_all
from fggp.lab.report.records import load
from fggp.lab.report.settings import ReportSettings
from fggp.lab.report.style import PictureFolder, looks
from fggp.lab.report.tables import rows_of, tabulate

CONSOLE_NOTES_MAX = 10
"""Notes that the console shows; the report has all of them."""


def report(settings: ReportSettings, console: Console) -> None:
    """Read the records, write the report into its folder, and show the main tables.

    Raises:
        UsageError: no record is usable, or the baseline is not among the methods.
    """
    loaded = load(settings.paths, settings.by)
    tables = tabulate(loaded.runs)
    baselines = baseline_of(tables, settings.baseline)
    for note in loaded.notes[:CONSOLE_NOTES_MAX]:
        console.print(f"[yellow]note[/] {escape(note)}", highlight=False, soft_wrap=True)
    if len(loaded.notes) > CONSOLE_NOTES_MAX:
        more = len(loaded.notes) - CONSOLE_NOTES_MAX
        console.print(f"[yellow]note[/] and {more} more: see the report", highlight=False)

    settings.out.mkdir(parents=True, exist_ok=True)
    ranking = contest(tables)
    folder = PictureFolder(settings.out, looks(rows_of(tables)), settings.by)
    with console.status("drawing"):
        draw_all(folder, tables, ranking, baselines)
    text = markdown.render(loaded, tables, ranking, baselines, folder.pictures)
    html = page.render(text, markdown.render_runs(loaded.runs, tables), settings.out)
    files = {settings.out / "report.html": html, settings.out / "report.md": text}
    for file, content in files.items():
        with atomic_write(file) as target:
            target.write(content.encode(errors="replace"))  # JSON may hold halves of characters
    for number, table in enumerate(tables):
        console.print(f"\n{escape(table.title)}", highlight=False)
        console.print(Markdown(markdown.accuracy_table(table, baselines.get(number, ""))))
    legend = f"{settings.by} accuracy, % (seeds); bold: the highest; ≈: cannot be told from it; #: rank\n"
    console.print(legend, style="dim", highlight=False)
    headline = markdown.title(settings.by, tables, ranking)
    console.print(f"[bold]{escape(headline)}[/]\n", highlight=False, soft_wrap=True)
    for what, shown in zip(("page", "markdown", "pictures"), (*files, settings.out / "*.png, *.svg"), strict=True):
        console.print(f"{what:10}{escape(str(shown))}", highlight=False, soft_wrap=True)
