import base64
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from rich.console import Console

from fggp.lab import cli
from fggp.lab.base.errors import UsageError
from fggp.lab.report.markdown import escape
from fggp.lab.report.pictures import curve_of, followed_split
from fggp.lab.report.report import report
from fggp.lab.report.runs import parse
from fggp.lab.report.settings import ReportSettings
from fggp.lab.report.tables import tabulate
from made import minimal, record, write

NASTY = "<script>alert('&')</script>|`*"


def made(tmp_path: Path, records: list[dict], **options) -> Path:
    """Report on records, and return the report's folder."""
    file = write(tmp_path / "runs.jsonl", records)
    report(ReportSettings((file,), tmp_path / "out", **options), Console(quiet=True))
    return tmp_path / "out"


def several(seeds: int = 3) -> list[dict]:
    return [
        record(method, seed, sparsity)
        for seed in range(seeds)
        for sparsity in (0.9, 0.98)
        for method in ("dense", "fggp", "gmp")
        if method != "dense" or sparsity == 0.9
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("report"), several())


def test_what_a_report_leaves(folder):
    pictures = {"accuracy", "ranks", "differences", "curves", "density"}
    assert {file.name for file in folder.iterdir()} == {
        *("report.html", "report.md"),
        *(f"{name}.{ending}" for name in pictures for ending in ("png", "svg")),
    }
    for name in pictures:
        with Image.open(folder / f"{name}.png") as image:
            assert min(image.size) > 200
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")


def test_markdown(folder):
    text = (folder / "report.md").read_text()
    assert text.startswith("# Pruning methods compared\n\n**")
    assert "\n## digits · digits-cnn · 4 epochs · dense start\n" in text
    assert "| method | 90 % sparsity | 98 % sparsity |\n| --- | ---: | ---: |\n| dense | " in text
    assert re.search(r"\n\| FGGP \| \*?\*?\d\d\.\d\d ± \d\.\d\d\*?\*? \(3\)( ≈)? #[12] \| ", text)
    assert re.search(r"\n\| GMP \| [+−]?\d\.\d\d \[.+ to .+\] \(3\), (higher|lower|not distinguishable) \| ", text)
    for picture in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (folder / picture).exists()
    assert text.count("![") == 5
    assert "\n\n\n" not in text


class Page(HTMLParser):
    """What a page holds; refuses one whose elements are not nested properly."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[list[str]]] = []  # cells by line by table
        self.pictures: list[tuple[str, str]] = []  # what it is of, and its source
        self.attributes: dict[str, list[str]] = {}
        self.tags: set[str] = set()
        self.feed(file.read_text())
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            self.attributes.setdefault(name, []).append(value or "")
        if tag == "img":
            self.pictures.append((dict(attributes)["alt"], dict(attributes)["src"]))
        if tag not in ("meta", "img", "hr", "br"):
            self.open.append(tag)
        if tag == "table":
            self.rows.append([])
        if tag == "tr":
            self.rows[-1].append([])
        if tag in ("th", "td"):
            self.rows[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & {*self.open}:
            self.rows[-1][-1][-1] += data


def test_the_page_needs_nothing_else(folder):
    page = Page(folder / "report.html")
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page.attributes["content"]
    assert not {"script", "link", "iframe", "object", "svg"} & page.tags
    assert not {"href", "srcset"} & page.attributes.keys()
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.attributes["src"])
    text = (folder / "report.html").read_text()
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_has_every_picture(folder):
    pictures = Page(folder / "report.html").pictures
    names = re.findall(r"!\[.*\]\((.*)\.png\)", (folder / "report.md").read_text())
    assert len(pictures) == len(names) == 5
    for (title, source), name in zip(pictures, names, strict=True):
        assert title
        svg = base64.b64decode(source.partition(",")[2])
        assert svg == (folder / f"{name}.svg").read_bytes()


def test_the_page_has_every_table(folder):
    lines = (folder / "report.md").read_text().splitlines()
    tables = Page(folder / "report.html").rows
    in_markdown = [line for line in lines if line.startswith("| ") and not line.startswith("| ---")]
    *reported, runs = tables
    assert len(reported) == 3  # accuracy, differences, ranks
    shown = [cells for table in reported for cells in table]
    assert len(shown) == len(in_markdown)
    for cells, line in zip(shown, in_markdown, strict=True):
        plain = line.replace("**", "").replace("\\", "")
        assert plain == f"| {' | '.join(cells)} |"
    assert runs[0] == ["run", "method", "sparsity", "seed", "test, %", "validation, %"]
    assert len(runs) == 1 + len(several())
    assert ["digits-gmp-0.98-seed1", "GMP", "98 %", "1"] in [cells[:4] for cells in runs]
    assert "All runs share: data digits, model digits-cnn, " in (folder / "report.html").read_text()


def test_what_records_say_is_never_markup(tmp_path):
    names = {"run": NASTY, "data": NASTY, "model": NASTY, "lr": NASTY}
    folder = made(tmp_path, [record(NASTY, **names), record("gmp", **names), record("dense", **names)])
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert unescape(page).count("<script>alert") > 10
    assert NASTY in [row[0] for row in Page(folder / "report.html").rows[0]]
    for picture in folder.glob("*.svg"):
        ElementTree.parse(picture)
    assert "<script>" not in (folder / "report.md").read_text()


def test_a_name_that_looks_like_a_picture_is_text(tmp_path):
    name = '![x](accuracy.png) src="accuracy.png" https://example.org'
    page = Page(made(tmp_path, [record(run=name), record("gmp")]) / "report.html")
    assert len(page.pictures) == 4
    assert name in [row[0] for row in page.rows[-1]]
    assert "href" not in page.attributes


def test_markdown_is_escaped():
    assert escape("a|b\n*c* <d> [e](f) `g`") == r"a\|b \*c\* \<d\> \[e\](f) \`g\`"


def test_halves_of_characters_do_not_stop_a_report(tmp_path):
    broken = json.loads('"\\ud800"')
    assert (made(tmp_path, [record(run=f"run {broken}"), record("gmp")]) / "report.html").exists()


def test_minimal_records(tmp_path):
    folder = made(tmp_path, [minimal(method, seed) for seed in range(2) for method in ("dense", "fggp", "gmp")])
    assert {file.stem for file in folder.glob("*.png")} == {"accuracy", "differences"}
    text = (folder / "report.md").read_text()
    assert "## digits · digits-cnn · dense start" in text
    assert "Not all records hold settings" in text


def test_one_seed_has_no_deviation_and_no_interval(tmp_path):
    text = (made(tmp_path, several(seeds=1)) / "report.md").read_text()
    assert re.search(r"\| FGGP \| \*?\*?\d\d\.\d\d ± –\*?\*? \(1\) #[12] \|", text)
    assert re.search(r"\| GMP \| [+−]\d\.\d\d \[–\] \(1\) \|", text)
    assert "≈ #" not in text
    assert "with fewer than two seeds in common nothing tells how much of that is noise" in text


@pytest.mark.parametrize(
    "records",
    [
        [record("dense")],
        [record()],
        [record(), record("gmp", sparsity=0.9)],
        [record(rate=rate, seed=seed) for rate in (0.1, 0.5, 0.9) for seed in range(2)],
        [{**record(seed=seed), "curve": {"epoch": [1], "test_accuracy": [50]}} for seed in range(2)],
        [record(f"method {number}", sparsity=sparsity) for number in range(14) for sparsity in (0.5, 0.99)],
        [record(accuracy=accuracy, seed=seed) for seed, accuracy in enumerate((0.0, 100.0))],
        [record("rigl", init_sparsity=0.95), record(), record(init_sparsity=0.5)],
        [record(sparsity=0.0), record("gmp", sparsity=1.0)],
        [{**record(), "densities": {f"block.{n}.conv.weight": 0.1 for n in range(60)}}],
        [
            {
                **record(),
                "device": ["a"],
                "date": 7,
                "versions": "one",
                "images_per_second": None,
                "parameters_left": "3",
            }
        ],
    ],
    ids=lambda records: records[0]["run"],
)
def test_records_of_any_kind(tmp_path, records):
    folder = made(tmp_path, records)
    assert (folder / "report.md").read_text().count("![") == len(list(folder.glob("*.png")))
    page = Page(folder / "report.html")
    assert len(page.rows[-1]) == 1 + len(records)
    assert len(page.pictures) == len(list(folder.glob("*.svg")))


def test_a_sweep_of_the_rate_is_drawn(tmp_path):
    folder = made(tmp_path, [record(rate=rate, seed=seed) for rate in (0.1, 0.5, 0.9) for seed in range(2)])
    assert (folder / "rate.png").exists()
    assert "FGGP (r = 0.1)" in (folder / "report.md").read_text()


def test_what_was_left_out_is_told_everywhere(tmp_path, capsys):
    file = write(tmp_path / "runs.jsonl", [record(), record(run="again")])
    with file.open("a") as target:
        target.write("{<b>")
    report(ReportSettings((file,), tmp_path / "out"), Console(width=200))
    output = capsys.readouterr().out
    for where in (output, unescape((tmp_path / "out" / "report.html").read_text())):
        assert f"{file}:2: not used, the same settings and seed as {file}:1" in where
        assert f"{file}:3: skipped, not JSON" in where
    assert "## Left out" in (tmp_path / "out" / "report.md").read_text()


def test_many_notes_are_cut_short_in_the_console(tmp_path, capsys):
    file = write(tmp_path / "runs.jsonl", [record(run=f"again {number}") for number in range(30)])
    report(ReportSettings((file,), tmp_path / "out"), Console(width=200))
    assert "and 19 more: see the report" in capsys.readouterr().out


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs.jsonl", several(seeds=2))
    assert cli.main(["report", ".", "--baseline", "gmp"]) == 0
    output = capsys.readouterr().out
    for shown in (
        "FGGP",
        "±",
        "(2)",
        "90 % sparsity",
        "fggp-report/report.html",
        "fggp-report/report.md",
        "fggp-report/*.png",
    ):
        assert shown in output
    assert "minus GMP" in (tmp_path / "fggp-report" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "no usable record in ."),
    ],
)
def test_what_cannot_be_reported_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("fggp: ")
    assert message in output.err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_baseline_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match="baseline is 'snip'"):
        made(tmp_path, several(1), baseline="snip")
    assert not (tmp_path / "out").exists()


def test_no_path_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["report"])
    assert exit_.value.code == 2
    assert "paths" in capsys.readouterr().err.lower()


def test_the_same_records_make_the_same_report(folder, tmp_path):
    again = made(tmp_path, several())
    for file in folder.iterdir():
        text = file.read_bytes().replace(str(folder.parent).encode(), str(tmp_path).encode())
        assert text == (again / file.name).read_bytes(), file.name


def test_a_report_by_validation_says_so_and_compares_nothing_else(tmp_path):
    """Test and validation accuracy disagree on which method is better."""
    records = several()
    for own in records:
        better = own["method"] == "gmp"
        own["test_accuracy"] = 80.0 + own["seed"] + (5 if better else 0)
        own["val_accuracy"] = 70.0 + own["seed"] - (5 if better else 0)
        own["curve"]["val_accuracy"] = [11.0, 22.0, 33.0, 44.0]
    records.append({**record("gmp", 3, 0.9), "val_accuracy": None})
    folder = made(tmp_path, records, by="validation")
    markdown, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert "**By validation accuracy: FGGP ranks first" in markdown
    assert "| FGGP | **71.00 ± 1.00** (3) #1 |" in markdown
    assert "| GMP | −5.00 [–] (3) |" in markdown
    assert "\n| minus FGGP, on average |  | −5.00 [–] (3) |\n" in markdown
    assert "est accuracy" not in markdown
    assert "runs.jsonl:16: skipped, nothing was held out, so it has no validation accuracy" in markdown
    assert "Accuracy is on the training images that were held out" in unescape(page)
    epochs, mean, _ = curve_of({0: parse(records[0], by="validation")[0]}, "validation")
    assert epochs == (1, 2, 3, 4)
    assert mean.tolist() == [11.0, 22.0, 33.0, 44.0]


def test_training_is_followed_by_what_most_runs_were_followed_by():
    """Runs of today have a test accuracy of the last epoch only; older ones have both, foreign ones no validation."""

    def curve(seed, **accuracies):
        return parse({**record(seed=seed), "curve": {"epoch": [1, 2], **accuracies}})[0]

    today = {"val_accuracy": [50.0, 60.0], "test_accuracy": [None, 61.0]}
    older = {"val_accuracy": [50.0, 60.0], "test_accuracy": [51.0, 61.0]}
    foreign = {"val_accuracy": [None, None], "test_accuracy": [51.0, 61.0]}
    for kinds, followed in (
        ((today,), "validation"),
        ((older,), "validation"),
        ((foreign,), "test"),
        ((today, older), "validation"),
        ((today, foreign), "validation"),
        ((older, foreign), "test"),
    ):
        (table,) = tabulate([curve(seed, **kind) for seed, kind in enumerate(kinds)])
        assert followed_split(table) == followed


def test_rates_that_were_tried_out_are_not_ranked(tmp_path):
    """The best of many rates is best by luck too: it must not take the first rank from the methods' own."""
    sweep = [record(rate=r, seed=s, accuracy=90 + r + s) for r in (0.3, 0.5, 0.7) for s in range(2)]
    markdown = (
        made(tmp_path, [*sweep, *(record("gmp", s, accuracy=80 + s) for s in range(2))]) / "report.md"
    ).read_text()
    assert "| FGGP (r = 0.7) | 91.20 ± 0.71 (2) |" in markdown
    assert "| FGGP (r = 0.5) | **91.00 ± 0.71** (2) #1 |" in markdown
    assert "| GMP | 80.50 ± 0.71 (2) #2 |" in markdown
    assert "tried out here, are not ranked" in markdown


def test_without_a_sweep_nothing_is_said_of_rates(folder):
    assert "tried out here" not in (folder / "report.md").read_text()


def test_every_mean_that_is_compared_is_of_the_shared_seeds(tmp_path):
    """FGGP would be first by the seeds that only it has."""
    seeds = {"fggp": (70.0, 71.0, 99.0), "gmp": (72.0, 73.5)}
    records = [record(m, seed, accuracy=a) for m, own in seeds.items() for seed, a in enumerate(own)]
    markdown = (made(tmp_path, records) / "report.md").read_text()
    assert "| FGGP | 70.50 ± 0.71 (2) ≈ #2 |" in markdown
    assert "| GMP | **72.75 ± 1.06** (2) #1 |" in markdown
    assert "| GMP | +2.25 [−0.93 to +5.43] (2), not distinguishable |" in markdown
    assert "GMP ranks first of 2 methods at 95 % sparsity" in markdown
