"""The preregistered study's analysis, on records whose differences are known."""

import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "experiments" / "study"


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDY))
        patch.chdir(ROOT)  # methods of a file are named from the root
        names = ("contrasts", "analyse", "collect")
        modules = SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        modules.plan = modules.contrasts.planned()
        yield modules


def seed_numbers(seeds, scale=1.0):
    return {seed: scale * float(np.random.default_rng(seed).normal()) for seed in seeds}


def accuracies(study, effect, noise=0.3):
    """Every planned run, with accuracy = a number of the seed + the effect of its cell + noise of its own."""
    rng = np.random.default_rng(0)
    return {
        cell: {seed: 60 + 5 * number + effect(cell) + noise * rng.normal() for seed, number in own.items()}
        for cell, seeds in study.plan.items()
        for own in [seed_numbers(sorted(seeds))]
    }


def by_name(estimates):
    return {estimate.contrast.name: estimate for estimate in estimates}


def test_counts_are_those_of_the_preregistration(study):
    runs = {part: sum(len(s) for cell, s in study.plan.items() if cell.part == part) for part in "ABCDE"}
    text = (ROOT / "experiments" / "PREREGISTRATION.md").read_text()
    assert runs == {"A": 224, "B": 36, "C": 48, "D": 56, "E": 112}
    assert f"{sum(runs.values())} runs" in text
    for part, count in runs.items():
        assert any(line.startswith(f"| {part} ") and f"| {count} |" in line for line in text.splitlines())
        assert f"{count} runs" in (STUDY / f"{part}.toml").read_text()
    assert min(seed for seeds in study.plan.values() for seed in seeds) == 100


def test_every_contrast_is_of_planned_cells_and_sums_to_zero(study):
    found = study.contrasts.contrasts()
    assert len({contrast.name for contrast in found}) == len({contrast.what for contrast in found}) == len(found)
    for contrast in found:
        assert contrast.weights.keys() <= study.plan.keys()
        assert sum(contrast.weights.values()) == pytest.approx(0, abs=1e-12)
        assert sum(weight for weight in contrast.weights.values() if weight > 0) in (pytest.approx(1), pytest.approx(2))


def test_every_planned_cell_is_in_a_contrast(study):
    assert study.plan.keys() == {cell for contrast in study.contrasts.contrasts() for cell in contrast.weights}


def test_primary_contrasts_are_those_of_the_preregistration(study):
    text = (ROOT / "experiments" / "PREREGISTRATION.md").read_text()
    for contrast in study.contrasts.contrasts():
        assert (f"| {contrast.name} | {contrast.what} |" in text) == contrast.primary


EFFECTS = {
    "fggp": 3.0,
    "magnitude-first": 2.0,
    "gradient-first-annealed": 1.5,
    "magnitude-first-annealed": 1.3,
    "gmp": 1.0,
    "granet": 0.5,
    "random-first": 2.9,
    "one-shot gmp": 0.2,
    "dense": 0.0,
}


def effect(cell):
    later = {"B": 0.4, "C": 1.5}.get(cell.part, 0.0) if cell.method == "gmp" else 0.0
    return EFFECTS[cell.method] + later - 10 * cell.sparsity + 0.5 * (cell.model in ("resnet20@0.36", "resnet20@0.19"))


def test_contrasts_are_the_known_differences(study):
    # Without noise, what depends on the seed alone cancels.
    exact = accuracies(study, effect, noise=0)
    values = {c.name: study.analyse.values_of(c, exact) for c in study.contrasts.contrasts() if c.primary}
    sparse = -10 * (0.9 + 0.95 + 0.98) / 3
    expected = {
        "A1": (3 + 1.5 - 2 - 1.3) / 2,
        "A2": (3 + 2 - 1.5 - 1.3) / 2,
        "A3": (3 - 1.5) - (2 - 1.3),
        "A4": 2.0,
        "A5": 0.1,
        "B1": -0.4,
        "B2": 0.4,
        "C1": 0.5,
        "C2": -1.5,
        "D1": 2.0,
        "D2": 0.1,
        "E1": 3 + sparse,
        "E2": 3 + sparse - 1 / 3,
        "E3": 2.8,
        "E4": 3 - 9.8,
    }
    assert values.keys() == expected.keys()
    for name, difference in expected.items():
        assert [*values[name].values()] == pytest.approx([difference] * len(values[name]))
    assert {name: len(own) for name, own in values.items()} == {
        **dict.fromkeys(["A1", "A2", "A3", "A4", "A5"], 16),
        **dict.fromkeys(["B1", "B2", "C1", "C2"], 12),
        **dict.fromkeys(["D1", "D2", "E1", "E2", "E3", "E4"], 8),
    }


def test_intervals_and_p_values(study):
    found = by_name(study.analyse.analyse(accuracies(study, effect), study.plan))
    a4 = found["A4"]
    numbers = np.array([*a4.values.values()])
    half = student.ppf(0.975, 15) * numbers.std(ddof=1) / 4
    assert (a4.low, a4.high) == pytest.approx((numbers.mean() - half, numbers.mean() + half))
    assert a4.effect == pytest.approx(numbers.mean() / numbers.std(ddof=1))
    assert a4.p == pytest.approx(2 * student.sf(abs(a4.effect) * 4, 15))
    assert a4.p_flip == pytest.approx(2 / 2**16)  # all sixteen are above zero
    assert a4.verdict == "higher"
    assert found["B2"].adjusted >= found["B2"].p


def test_no_effect_is_called_no_difference_shown(study):
    found = by_name(study.analyse.analyse(accuracies(study, lambda cell: 0.0, noise=1.0), study.plan))
    verdicts = [estimate.verdict for estimate in found.values() if estimate.contrast.primary]
    assert verdicts == ["no difference shown"] * 15


def test_only_shared_seeds_are_compared_and_nothing_is_concluded_from_a_part_that_is_not_whole(study):
    known = accuracies(study, effect)
    cell = study.contrasts.Cell("A", "gmp", 0.98)
    del known[cell][115]
    known[study.contrasts.Cell("A", "fggp", 0.98)][114] += 1_000  # the seed that is left counts
    found = by_name(study.analyse.analyse(known, study.plan))
    assert sorted(found["A4"].values) == [*range(100, 115)]
    assert found["A4"].values[114] > 400
    assert found["A4"].verdict == "incomplete: 15 of 16 seeds"
    assert found["A4"].adjusted is None
    assert found["A2"].whole
    assert found["A2"].verdict == "waits for the other primary contrasts of its part"
    assert found["D1"].verdict == "higher"


def test_two_seeds_have_no_interval(study):
    known = {cell: {seed: own[seed] for seed in (100, 101)} for cell, own in accuracies(study, effect).items()}
    estimates = study.analyse.analyse(known, study.plan)
    assert all(e.low is None and e.p is None and e.mean is not None for e in estimates)
    assert "2 of 16" in study.analyse.report(estimates, known, study.plan)


def test_equal_differences_are_an_error(study):
    with pytest.raises(ValueError, match=r"A1 is 0\.600 for every seed"):
        study.analyse.analyse(accuracies(study, effect, noise=0), study.plan)


def test_holm_by_hand(study):
    assert study.analyse.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert study.analyse.holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_rejects_what_its_definition_rejects(study, p_values):
    rejected, left = set(), dict(enumerate(p_values))
    while left:
        index = min(left, key=left.__getitem__)
        if left[index] * len(left) >= 0.05:
            break
        rejected.add(index)
        del left[index]
    adjusted = study.analyse.holm(p_values)
    assert {index for index, p in enumerate(adjusted) if p < 0.05} == rejected


# Records on the disk


def record(study, cell, seed, accuracy, commit="c" * 40):
    method, _, one_shot = cell.method.rpartition(" ")[::-1]
    settings = {
        "sparsity": cell.sparsity,
        "model": cell.model,
        "epochs": cell.epochs,
        "every": 426 if one_shot else None,
    }
    run = f"{cell.method}-{cell.sparsity}-{cell.model}-{cell.epochs}-seed{seed}"
    made = {"run": run, "method": method, "seed": seed, "test_accuracy": accuracy}
    return {**made, "commit": commit, "settings": settings}


def write(folder, records):
    for part, own in records.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
        (folder / part / "grid.json").write_text("{}\n")


@pytest.fixture
def records(study):
    made = {part: [] for part in "ABCDE"}
    for cell, own in accuracies(study, effect).items():
        made[cell.part] += [record(study, cell, seed, accuracy) for seed, accuracy in own.items()]
    return made


def test_records_are_read(study, records, tmp_path):
    write(tmp_path, records)
    assert study.analyse.read(tmp_path) == accuracies(study, effect)


def test_files_are_written(study, records, tmp_path, monkeypatch, capsys):
    write(tmp_path, records)
    monkeypatch.setattr("sys.argv", ["analyse.py", str(tmp_path)])
    study.analyse.main()
    text = (tmp_path / "contrasts.md").read_text()
    assert "A 224 of 224, B 36 of 36, C 48 of 48, D 56 of 56, E 112 of 112" in text
    assert text.count("| higher |") + text.count("| lower |") + text.count("| no difference shown |") == 15
    assert (tmp_path / "contrasts.png").stat().st_size > 10_000
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, "seed 3 of A: fggp at 95 %, resnet20, 12 epochs was not planned in A.toml"),
        ({"method": "rigl"}, "seed 100 of A: rigl at 95 %.* was not planned"),
        ({"seed": 101}, "seed 101 of A: fggp at 95 %.* has another record"),
        ({"commit": "c" * 40 + "-dirty"}, "-dirty; it must be a commit without changes"),
        ({"commit": None}, "commit is None"),
        ({"commit": "d" * 40}, "commit is c+, but d+ in .*all must be of one"),
    ],
)
def test_records_that_were_not_planned_are_refused(study, records, tmp_path, change, message):
    records["A"][0] |= change
    write(tmp_path, records)
    with pytest.raises(ValueError, match=message):
        study.analyse.read(tmp_path)


def test_collected_records_grow(study, records, tmp_path):
    grids, into = tmp_path / "study" / "grids", tmp_path / "results"
    cells = 14
    some = [line for line in records["A"] if line["seed"] < 102]
    write(grids, {"A": [*some, records["A"][5]]})
    with (grids / "A" / "records.jsonl").open("a") as file:
        file.write('{"run": "cut sho')
    assert study.collect.collect(tmp_path / "study", into) == [f"A: {2 * cells + 1} of 224 runs, 2 whole seeds"]
    assert (into / "commit").read_text() == "c" * 40 + "\n"
    write(grids, {"A": records["A"], "D": records["D"][:1]})
    found = study.collect.collect(tmp_path / "study", into)
    assert found == ["A: 224 of 224 runs, 16 whole seeds", "D: 1 of 56 runs, 0 whole seeds"]
    assert (into / "A" / "records.jsonl").read_text() == (grids / "A" / "records.jsonl").read_text()


def test_collecting_another_study_changes_nothing(study, records, tmp_path):
    grids, into = tmp_path / "study" / "grids", tmp_path / "results"
    write(grids, {"A": records["A"]})
    study.collect.collect(tmp_path / "study", into)
    before = (into / "A" / "records.jsonl").read_bytes()
    write(grids, {"A": records["A"][1:]})
    with pytest.raises(ValueError, match=r"lacks fggp-0\.95-resnet20-12-seed100"):
        study.collect.collect(tmp_path / "study", into)
    shutil.rmtree(grids)
    write(grids, {"A": records["A"], "D": [{**records["D"][0], "commit": "d" * 40}]})
    with pytest.raises(ValueError, match="all records must be of one commit"):
        study.collect.collect(tmp_path / "study", into)
    assert (into / "A" / "records.jsonl").read_bytes() == before
    assert not (into / "D").exists()
