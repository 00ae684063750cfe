"""Numbers and findings in words, as the console, the Markdown and the pictures show them."""

from collections.abc import Sequence

from fggp.lab.report.findings import Contest, dense_accuracy, overall
from fggp.lab.report.runs import Run
from fggp.lab.report.statistics import Difference, Summary, summarise
from fggp.lab.report.tables import Table, percent, settings_of


def headline(tables: Sequence[Table], ranking: Contest | None) -> str:
    """Say in a sentence what was found, and whether it is more than the seeds' noise."""
    if ranking is not None:
        return _winner(ranking)
    settings = settings_of(tables)
    if not settings:
        return _only_method(tables[0].dense[0].label, tables[0], tables[0].dense[0].runs)
    if len(settings) == 1:
        (name, cell), *_ = settings[0].cells.items()
        return _only_method(name, settings[0].table, [*cell.values()], settings[0].sparsity)
    return "No two methods were run in the same setting, so none can be ranked."


def _winner(ranking: Contest) -> str:
    names = list(ranking.average)
    tied = [name for name in names if round(ranking.average[name] - ranking.average[names[0]], 9) == 0]
    count = len(ranking.settings)
    where = f"at {percent(ranking.settings[0].sparsity)} sparsity" if count == 1 else f"over {count} settings"
    what = "methods" if len({row.method for row in ranking.rows}) == len(names) else "variants"
    if len(tied) > 1:
        lead = _lead(ranking, tied[0], tied[1])
        return f"{listed(tied)} share the first rank of {len(names)} {what} {where}; {lead}."
    rank = "" if count == 1 else f" (average rank {ranking.average[names[0]]:.2f})"
    return f"{names[0]} ranks first of {len(names)} {what} {where}{rank}; {_lead(ranking, names[0], names[1], 'it')}."


def _lead(ranking: Contest, first: str, second: str, subject: str | None = None) -> str:
    """Say how large the difference of the first two is, and whether it is more than noise."""
    difference = overall(ranking.settings, first, second, ranking.seeds)
    gap = ranking.accuracy[first] - ranking.accuracy[second] if difference is None else difference.mean
    average = " on average" if len(ranking.settings) > 1 else ""
    apart = f"{subject or first} is {abs(gap):.2f} points {'above' if gap > 0 else 'below'} {second}{average}"
    if difference is None or difference.pairs < 2:
        return f"{apart}, and with fewer than two seeds in common nothing tells how much of that is noise"
    if difference.low is None or difference.high is None:
        return f"{apart}, the same for all {difference.pairs} seeds: too few to tell how much of that is noise"
    within = difference.verdict == "not distinguishable"
    interval = f"95 % confidence interval {interval_of(difference)}, {difference.pairs} seeds"
    return f"{apart}, {'within' if within else 'beyond'} the noise of the seeds ({interval})"


def _only_method(name: str, table: Table, runs: Sequence[Run], sparsity: float | None = None) -> str:
    accuracy = summarise([run.accuracy for run in runs])
    where = "" if sparsity is None else f" at {percent(sparsity)} sparsity"
    seeds = count_of(accuracy.count, "seed")
    reached = f"{name} reaches {mean_std(accuracy)} % on {table.data} with {table.model}{where} ({seeds})"
    if sparsity is None or not table.dense:
        return f"{reached}; there is nothing to compare it with."
    return f"{reached}; dense reaches {mean_std(dense_accuracy(table))} %."


def mean_std(accuracy: Summary) -> str:
    """Write mean ± standard deviation."""
    return f"{accuracy.mean:.2f} ± {'–' if accuracy.std is None else f'{accuracy.std:.2f}'}"


def signed(difference: float) -> str:
    """Write a number with its sign; what rounds to zero has none."""
    return "0.00" if abs(difference) < 0.005 else f"{difference:+.2f}".replace("-", "−")


def interval_of(difference: Difference) -> str:
    """Write a confidence interval, – where there is none."""
    if difference.low is None or difference.high is None:
        return "–"
    return f"{signed(difference.low)} to {signed(difference.high)}"


def count_of(number: int, what: str) -> str:
    """Write a number of things."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def listed(names: Sequence[str]) -> str:
    """Write names as an enumeration."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
