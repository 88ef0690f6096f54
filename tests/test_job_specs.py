"""Parameters declared once: bounds, conversion, uniqueness, and what is made from the declarations."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

from integration.local.docs import parameter_tables
from integration.relion.template import ROWS, parameter_rows, render
from job_specs.jobs import JOBS, build
from job_specs.parameter import check, parameters_of, parse
from job_specs.parameters import (
    MeshParameters,
    PrepParameters,
    RefineParameters,
    SimulateParameters,
    TrainParameters,
    names_in,
    problems,
)

ROOT = Path(__file__).parent.parent
GROUPS = [getattr(RefineParameters(), entry.name) for entry in fields(RefineParameters)] + [SimulateParameters()]
EVERY = [declared for group in GROUPS for declared in parameters_of(group)]


def declared(name: str):  # type: ignore[no-untyped-def]
    return next(entry for entry in EVERY if entry.name == name)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: type(group).__name__)
def test_every_field_is_declared_and_its_default_is_within_bounds(group: object) -> None:
    assert [entry.name for entry in parameters_of(group)] == [entry.name for entry in fields(group)]  # type: ignore[arg-type]
    assert check(group) == []


@pytest.mark.parametrize("entry", EVERY, ids=lambda entry: entry.name)
def test_help_is_there_and_the_default_survives_text(entry) -> None:  # type: ignore[no-untyped-def]
    assert len(entry.help) > 5
    assert not entry.help.endswith(".")
    text = ("yes" if entry.default else "no") if entry.kind is bool else str(entry.default)
    assert parse(entry, text) == entry.default
    assert type(parse(entry, text)) is entry.kind


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("latent_dims", "3", 3),
        ("latent_dims", 3.0, 3),
        ("latent_dims", "auto", 0),
        ("rigidity", " AUTO ", 0.0),
        ("rigidity", "0", 0.0),
        ("rigidity", "1e-1", 0.1),
        ("rigidity", 1, 1.0),
        ("bfactor", "-80", -80.0),
        ("stiffen_low_density", "Yes", True),
        ("stiffen_low_density", False, False),
        ("latent_columns", ["a", "b"], "a,b"),
        ("fuse", "1-2,2-3", "1-2,2-3"),
    ],
)
def test_parse(name: str, given: object, value: object) -> None:
    got = parse(declared(name), given)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("latent_dims", "-1"),
        ("latent_dims", "17"),
        ("latent_dims", "2.5"),
        ("latent_dims", True),
        ("latent_dims", "many"),
        ("rigidity", "nan"),
        ("rigidity", "inf"),
        ("rigidity", "-1"),
        ("half_sets", "both"),
        ("stiffen_low_density", "maybe"),
        ("stiffen_low_density", 2),
        ("scratch", {"a": 1}),
    ],
)
def test_what_does_not_fit_is_told_with_what_was_given_and_expected(name: str, given: object) -> None:
    with pytest.raises(ValueError, match=rf"{name}: .*given; expected .*default") as error:
        parse(declared(name), given)
    assert str(given) in str(error.value)


def test_check_lists_every_problem() -> None:
    found = check(TrainParameters(latent_dims=99, rigidity=-1.0, optimizer="sgd", band_end=0.5))
    assert [line.split(":")[0] for line in found] == ["latent_dims", "rigidity", "optimizer"]
    assert check(MeshParameters(tetra_cells=20.5)) != []  # type: ignore[arg-type]


def test_what_must_fit_together() -> None:
    def told(**train: object) -> list[str]:
        return problems(RefineParameters(train=replace(TrainParameters(), **train)))  # type: ignore[arg-type]

    assert told() == []
    assert "band_end, which is 0.8" in told(band_start=0.9)[0]
    assert "latent_dims: auto" in told(latent_file="z.pkl")[0]
    assert "without latent_columns" in told(latent_start="columns")[0]
    assert "one per latent" in told(latent_start="columns", latent_columns="a, b, c")[0]
    assert told(latent_start="columns", latent_columns="a, b", latent_dims=2) == []


def test_parameters_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        PrepParameters().training_box = 64  # type: ignore[misc]


@pytest.mark.parametrize("job", JOBS.values(), ids=lambda job: job.name)
def test_jobs_are_sound(job) -> None:  # type: ignore[no-untyped-def]
    names = [entry.name for _, entry in job.parameters()]
    assert len(names) == len(set(names))
    assert len({output.file for output in job.outputs}) == len(job.outputs)
    assert len(parameter_rows(job)) <= ROWS


def test_flags_win_over_the_file_and_columns_imply_their_use() -> None:
    parameters, found = build(JOBS["refine"], {"epochs": 3, "latent-dims": 4}, {"epochs": "5"})
    assert found == []
    assert (parameters.train.epochs, parameters.train.latent_dims) == (5, 4)
    parameters, found = build(JOBS["refine"], {}, {"latent_columns": "rlnA,rlnB"})
    assert found == []
    assert parameters.train.latent_start == "columns" and parameters.train.latent_dims == 2
    assert names_in(parameters.train.latent_columns) == ("rlnA", "rlnB")
    parameters, _ = build(JOBS["refine"], {}, {"latent_columns": "rlnA,rlnB", "latent_start": "zero"})
    assert parameters.train.latent_start == "zero"


def test_unknown_and_bad_values_are_all_told_and_the_rest_is_kept() -> None:
    parameters, found = build(JOBS["refine"], {"epoch": 3, "frames": 5}, {"rigidity": "soft", "latent_dims": "1"})
    assert len(found) == 3
    assert "did you mean epochs" in found[0]
    assert parameters.train.latent_dims == 1
    assert parameters.train.rigidity == TrainParameters().rigidity


def test_the_table_in_the_documentation_is_in_step() -> None:
    assert (ROOT / "docs" / "parameters.md").read_text() == parameter_tables(), "run: make docs"


@pytest.mark.parametrize("job", JOBS.values(), ids=lambda job: job.name)
def test_job_star_has_the_ten_rows(job) -> None:  # type: ignore[no-untyped-def]
    from gemmi import cif

    block = cif.read_string(render(job))
    assert block.find_block("job").find_value("_rlnJobType") == "99"
    table = block.find_block("joboptions_values").find(["_rlnJobOptionVariable", "_rlnJobOptionValue"])
    options = {row[0]: row.str(1) for row in table}
    assert options["fn_exe"] == f"relion_flex_{job.name}"
    shown = [(options[f"param{i}_label"], options[f"param{i}_value"]) for i in range(1, ROWS + 1)]
    expected = parameter_rows(job)
    assert shown == expected + [("", "")] * (ROWS - len(expected))
