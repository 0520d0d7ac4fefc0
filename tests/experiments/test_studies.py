"""The studies of what the paper leaves open: their records, their tables, and the page that reads them."""

import copy
import re

import pytest

from stn.experiments.command import ROOT
from stn.experiments.results import records, studies

KEPT = records.read_kept(ROOT / "results/studies")
PAGE = (ROOT / "docs/studies.md").read_text()


def changed(record, steps=None, error=None, **distortion):
    other = copy.deepcopy(record)
    other["config"]["data"]["distortion"] |= distortion
    other["steps"] = steps or other["steps"]
    other["metrics"]["test/error"] = error or other["metrics"]["test/error"]
    return other


@pytest.fixture
def of_p():
    return next(record for record in KEPT if studies.where(record) == "p")


def test_every_kept_study_was_judged_on_validation():
    assert {record["config"]["data"]["test_split"] for record in KEPT} == {"valid"}
    assert {record["schedule"] for record in KEPT} == {"study", "quick", "fast", "svhn_small", "cub_small", "fast_3d"}


def test_no_study_is_among_the_records_of_the_tables():
    assert not {record["id"] for record in records.read_kept(ROOT / "results")} & {record["id"] for record in KEPT}


def test_the_page_shows_what_the_records_say():
    assert studies.into_page(PAGE, KEPT) == PAGE


def test_every_error_in_the_prose_is_a_record_s():
    tables = "\n".join(re.findall(r"^\|.*\|$", PAGE, flags=re.MULTILINE))
    prose = re.sub(r"^\|.*\|$|```.*?```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    others = {"0.35", "1.86"}  # digits of P with little ink, counted; a figure of Table 1
    assert set(re.findall(r"\d+\.\d\d(?= %)", prose)) - set(re.findall(r"\d+\.\d\d", tables)) <= others


def test_the_birds_windows_follow_the_head_in_both_axes_in_every_seed_after_2000_steps():
    birds = [r for r in KEPT if studies.where(r) == "synthetic_birds" and r["steps"] == 2000]
    assert [record["seed"] for record in birds] == [0, 1, 2]
    lowest = min(v for record in birds for k, v in record["metrics"].items() if "_head_correlation_" in k)
    assert f"with correlations of at least {lowest:.2f}" in " ".join(PAGE.split())


@pytest.mark.parametrize(("std", "control"), [(3.54, "cells"), (2.5, "corners"), (3.54, "corners")])
def test_the_ratios_of_p_over_e_are_those_of_the_records(std, control):
    found = []
    for experiment, steps in (("mnist_fcn", 8000), ("mnist_cnn", 1500), ("mnist_st_fcn_tps", 6000)):
        p, e = (studies.results(study, KEPT)[experiment, study, None, steps, 64] for study in ("p", "e"))
        found.append(f"{studies.error(p[std]) / studies.error(e[control]):.2f}")
    assert f"P with {std} px over E with {control} gives {found[0]}, {found[1]} and {found[2]}" in " ".join(
        PAGE.split()
    )


def test_every_row_of_a_study_has_one_model_and_one_number_of_steps(of_p):
    some = [changed(of_p, corner_std_px=2.0, error=1.0), changed(of_p, corner_std_px=5.0, error=2.0),
            changed(of_p, steps=7, corner_std_px=4.0, error=3.0)]  # fmt: skip
    by_steps = {row[3]: cells for row, cells in studies.results("p", some).items()}
    errors = {n: {value: studies.error(runs) for value, runs in cells.items()} for n, cells in by_steps.items()}
    assert errors == {of_p["steps"]: {2.0: 1.0, 5.0: 2.0}, 7: {4.0: 3.0}}


def test_several_seeds_are_shown_as_their_mean_and_spread(of_p):
    some = [
        changed(of_p, corner_std_px=2.0, error=value) | {"seed": seed} for seed, value in enumerate((1.0, 2.0, 6.0))
    ]
    *_, line = studies.markdown("p", some).splitlines()
    assert "| 3.00 ± 2.65 (3) |" in line


def test_a_study_is_a_table_beside_the_paper(of_p):
    some = [changed(of_p, corner_std_px=value, error=value) for value in (2.0, 5.0)]
    head, _, line = studies.markdown("p", some).splitlines()
    assert head == "| Model | Steps x batch | 2 px | 5 px | Paper |"
    paper = studies.paper((of_p["experiment"], "p", None, 0, 0))
    assert line.endswith(f"| {of_p['steps']:,} x 64 | 2.00 | 5.00 | {paper} |")
