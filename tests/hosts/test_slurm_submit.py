"""Batch scripts and their submission: what the shell makes of hostile values, site templates, and what can go wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from integration.local.submit import submit_group
from integration.slurm.options import SubmitOptions, read_options, seconds_of
from integration.slurm.script import Submission, TemplateProblem, relion_template, render
from job_specs.jobs import JOBS
from job_specs.parameter import parameters_of

HOSTILE = [
    "$(touch pwned)", "`touch pwned`", "; touch pwned", "a b && touch pwned", "| touch pwned", "' ; touch pwned ; '",
    '" ; touch pwned ; "', "\\' ; touch pwned #", "${IFS}touch${IFS}pwned", ">pwned", "*", "~root", "!touch pwned",
    "--dry_run", "-x", "{{ 7 * 7 }}", "{% raw %}", "a\tb", "é ü", "%j",
]  # fmt: skip
SITE_TEMPLATE = """\
#!/usr/bin/env bash
# run_cmd={{ run_cmd }}, by {{ job_creator }} ({{ cryosparc_username }}), type {{ job_type }}
#SBATCH --job-name cryosparc_{{ project_uid }}_{{ job_uid }}
#SBATCH -n {{ num_cpu }}
#SBATCH --gres=gpu:{{ num_gpu }}
#SBATCH --mem={{ (ram_gb*1024)|int }}MB
#SBATCH --output={{ job_log_path_abs }}
#SBATCH --time={{ time_requested }}
{%- if num_gpu == 0 %}
#SBATCH --partition=cpu
{%- else %}
#SBATCH --partition=gpu
{%- endif %}
cd {{ project_dir_abs }} && ls {{ job_dir_abs }} {{ script_path_abs }} >/dev/null
echo "{{ run_cmd }}"
bash -c '{{ run_cmd }}'
{{ worker_bin_path }} run {{ run_args }}
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project as current folder, with an executable that notes its arguments, and an srun that starts it."""
    project = tmp_path / "project"
    (project / "External/job012").mkdir(parents=True)
    (project / "run_data.star").touch()
    monkeypatch.chdir(project)
    executable(tmp_path / "bin/srun", '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    noting = executable(tmp_path / "bin/flex-job", f'#!/bin/bash\nprintf "%s\\0" "$@" >> {tmp_path}/noted\n')
    monkeypatch.setattr("integration.slurm.script._executable", lambda: str(noting))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    return project


def run_script(project: Path, text: str, folder: str = "External/job012") -> list[str]:
    """Run a script by bash; the arguments that our executable got, of all calls together."""
    script = project / folder / "run_submit.script"
    script.write_text(text)
    subprocess.run(["bash", script], cwd=project, capture_output=True, timeout=20, check=False)
    noted = project.parent / "noted"
    return noted.read_text().split("\0")[:-1] if noted.exists() else []


def submission(folder: str = "External/job012/", **options: object) -> Submission:
    return Submission("refine", Path(folder), {"in_parts": "run_data.star"}, SubmitOptions(**options))  # type: ignore[arg-type]


def with_value(value: str, **options: object) -> Submission:
    flags = {"in_parts": "run_data.star", "segmentation": value}
    return Submission("refine", Path("External/job012"), flags, SubmitOptions(**options))  # type: ignore[arg-type]


# -- the shell ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_reaches_the_shell_as_anything_but_itself(value: str, project: Path) -> None:
    if not value.isprintable():
        with pytest.raises(TemplateProblem, match="expected no control characters"):
            render(with_value(value))
        return
    noted = run_script(project, render(with_value(value)))
    assert noted == with_value(value).arguments
    assert f"--segmentation={value}" in noted
    assert {path.name for path in project.iterdir()} == {"External", "run_data.star"}


def test_the_shell_would_have_obeyed_an_unquoted_value(project: Path) -> None:
    quoted = render(with_value("$(touch pwned)"))
    run_script(project, quoted.replace("'--segmentation=$(touch pwned)'", "--segmentation=$(touch pwned)"))
    assert (project / "pwned").exists()


@pytest.mark.parametrize("value", [value for value in HOSTILE if re.search(r"[^\w.-]", value)])
def test_a_template_of_the_site_gets_no_value_that_needs_quotes(value: str, project: Path) -> None:
    template = project / "cluster_script.sh"
    template.write_text(SITE_TEMPLATE)
    with pytest.raises(TemplateProblem, match=r"--segmentation: .* was given|--segmentation: .* needs quotes"):
        render(with_value(value, template=str(template), variables="time_requested=1:00:00"))
    with pytest.raises(TemplateProblem, match="time_requested"):
        render(submission(template=str(template), variables=f"time_requested={value.replace(',', '')};"))


@pytest.mark.parametrize(
    "folder", ["External/a b/", "External/$(touch pwned)/", "External/a;b/", "External/%j/", "a\nb"]
)
def test_a_job_directory_that_a_script_line_cannot_hold(folder: str, project: Path) -> None:
    with pytest.raises(TemplateProblem, match="expected"):
        render(submission(folder))


@pytest.mark.parametrize("name", ["partition", "time", "mem", "account", "qos", "job_name"])
@pytest.mark.parametrize("value", ["gpu\ntouch pwned", "gpu --wrap=x", "$(touch pwned)", "a'b", "a\\b", "é"])
def test_lines_for_sbatch_take_plain_words_only(name: str, value: str) -> None:
    _, problems = read_options({name: value})
    assert any(line.startswith(f"{name}: ") and "expected" in line for line in problems)


# -- what is in the script ---------------------------------------------------------------------------------------


def directives(text: str) -> set[str]:
    return {word for line in text.splitlines() if line.startswith("#SBATCH ") for word in line.split()[1:]}


def test_the_script_asks_for_what_was_asked_for(project: Path) -> None:
    given = {
        "partition": "gpu",
        "gpus": "2",
        "time": "4:00:00",
        "mem": "64G",
        "account": "em",
        "qos": "high",
        "cpus": "8",
    }
    options, problems = read_options(given)
    assert problems == []
    text = render(Submission("refine", Path("External/job012"), {"in_parts": "run_data.star"}, options))
    assert directives(text) == {
        "--job-name=refine_job012", "--output=External/job012/run.out", "--error=External/job012/run.err",
        "--open-mode=append", "--partition=gpu", "--account=em", "--qos=high", "--time=4:00:00", "--mem=64G",
        "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=8", "--gpus-per-node=2", "--requeue", "--signal=USR1@300",
    }  # fmt: skip
    assert "srun --nodes=1 --ntasks=1 --cpus-per-task=8" in text
    assert "--threads=8" in text
    assert "export FLEX_JOB_REQUEUE=yes" in text
    once = render(submission(requeue=False))
    assert "--no-requeue" in directives(once) and "FLEX_JOB_REQUEUE" not in once


def test_several_nodes_run_one_process_for_each_gpu(project: Path) -> None:
    text = render(submission(nodes=2, gpus=4, cpus=32))
    assert {"--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=8", "--gpus-per-node=4"} <= directives(text)
    assert "srun --nodes=2 --ntasks=8 --cpus-per-task=8 --kill-on-bad-exit=1" in text
    assert "--threads=8" in text


def test_threads_given_are_kept(project: Path) -> None:
    given = Submission("refine", Path("External/job012"), {"threads": "3"}, SubmitOptions(nodes=2, gpus=2))
    assert {"--cpus-per-task=3"} <= directives(render(given))
    assert "--threads=3" in given.arguments


@pytest.mark.parametrize(
    ("time", "seconds", "warned"),
    [("90", 5400, 300), ("4:00:00", 14400, 300), ("10:00", 600, 60), ("1-0", 86400, 300), ("2-12:30", 217800, 300),
     ("1-0:0:30", 86430, 300), ("1", 60, 10), ("UNLIMITED", None, 300), ("", None, 300)],
)  # fmt: skip
def test_time_limits(time: str, seconds: int | None, warned: int) -> None:
    options, problems = read_options({"time": time} if time else {})
    assert problems == []
    assert seconds_of(time) == seconds
    assert options.warn_s == warned


@pytest.mark.parametrize(
    ("name", "value"),
    [("time", "soon"), ("time", "0"), ("time", "1:2:3:4"), ("mem", "64 GB"), ("mem", "lots"), ("gpus", "one"),
     ("nodes", "0"), ("variables", "lane"), ("variables", "a b=1"), ("warn", "1"), ("requeue", "perhaps"),
     ("partitions", "gpu")],
)  # fmt: skip
def test_options_that_make_no_sense_are_told(name: str, value: str) -> None:
    _, problems = read_options({name: value})
    assert any(name in line for line in problems)


# -- templates of a site -----------------------------------------------------------------------------------------


def test_a_template_for_cryosparc_works_as_it_is(project: Path) -> None:
    template = project / "cluster_script.sh"
    template.write_text(SITE_TEMPLATE)
    options = {
        "gpus": 2,
        "cpus": 8,
        "mem": "64G",
        "template": str(template),
        "variables": "time_requested=1:00:00,lane=x",
    }
    text = render(submission(**options))
    assert "#SBATCH -n 8" in text and "#SBATCH --gres=gpu:2" in text and "#SBATCH --mem=65536MB" in text
    assert "#SBATCH --partition=gpu" in text and "#SBATCH --time=1:00:00" in text
    assert f"#SBATCH --output={project}/External/job012/run.out" in text
    assert "#SBATCH --job-name cryosparc_project_job012" in text
    # by SLURM as a step, so that it hears of signals, and asked to come back
    assert re.search(
        r"^echo \"env FLEX_JOB_REQUEUE=yes srun .*flex-job refine --o=External/job012/", text, re.MULTILINE
    )
    arguments = submission(**options).arguments
    assert run_script(project, text) == [*arguments, "run", *arguments]
    elsewhere = render(submission(**options, submit_command="qsub {{ script_path_abs }}"))
    assert "srun" not in elsewhere and "FLEX_JOB_REQUEUE" not in elsewhere


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ run_comand }}", ["no variable run_comand", "run_cmd", "--variables"]),
        ("{{ run_cmd", ["line 1", "expected a Jinja2 template"]),
        ("{% if num_gpu %}", ["line 1", "expected a Jinja2 template"]),
        ("{{ run_cmd.no.such }}", ["script.sh"]),
        ("{{ ram_gb / (num_gpu - num_gpu) }}", ["division"]),
        ("{{ num_gpu + project_uid }}", ["unsupported operand"]),
        ("{% include 'other.sh' %}", ["script.sh"]),
    ],
)
def test_templates_that_are_none(text: str, words: list[str], project: Path) -> None:
    template = project / "script.sh"
    template.write_text(text)
    with pytest.raises(TemplateProblem) as caught:
        render(submission(template=str(template)))
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_template_for_relion_holds_its_strings() -> None:
    text = relion_template(SubmitOptions(gpus=4, nodes=2, time="24:00:00"))
    for word in ("XXXnameXXX", "XXXoutfileXXX", "XXXerrfileXXX", "XXXqueueXXX", "XXXthreadsXXX"):
        assert word in text
    assert "--ntasks-per-node=4" in text and "--gpus-per-node=4" in text
    (line,) = (line for line in text.splitlines() if "XXXcommandXXX" in line)
    assert line.startswith("srun --nodes=2 --ntasks=8 ") and line.endswith(" XXXcommandXXX")


# -- submission --------------------------------------------------------------------------------------------------


def call(*arguments: str, job: str = "refine") -> Result:
    return CliRunner().invoke(
        submit_group(),
        [job, "--o", "External/job012/", "--in_parts", "run_data.star", *arguments],
        prog_name="flex-job",
    )


def fake_sbatch(project: Path, text: str) -> str:
    return str(executable(project.parent / "bin/sbatch", f"#!/bin/bash\n{text}\n"))


def test_a_submission_is_recorded(project: Path) -> None:
    fake_sbatch(project, 'echo "$PWD" "$@" > told; echo "Submitted batch job 4711"')
    done = call("--latent_dims", "3", "--Partition", "gpu")
    assert done.exit_code == 0, done.output
    assert done.stdout.split()[0] == "4711"
    script = project / "External/job012/run_submit.script"
    assert (project / "told").read_text().split() == [str(project), str(script)]
    assert "--latent_dims=3" in script.read_text()
    record = json.loads((project / "External/job012/flex_submission.json").read_text())
    assert record["id"] == "4711" and record["submit_command"] == ["sbatch", str(script)]
    assert "--latent_dims=3" in record["arguments"]


def test_a_dry_run_prints_the_script_and_leaves_nothing(project: Path) -> None:
    fake_sbatch(project, "touch submitted; echo 1")
    before = sorted(project.rglob("*"))
    done = call("--dry_run")
    assert done.exit_code == 0 and done.stdout == render(submission())
    assert sorted(project.rglob("*")) == before


def test_another_scheduler(project: Path) -> None:
    executable(project.parent / "bin/qsub", '#!/bin/bash\n[[ $1 == -q && $2 == "the queue" ]] && echo "88.server"')
    done = call("--submit_command", "qsub -q 'the queue' {{ script_path_abs }}")
    assert done.stdout.split()[0] == "88.server", done.output


@pytest.mark.parametrize(
    ("script", "command", "words"),
    [
        ("echo 'sbatch: error: invalid partition: gpu' >&2; exit 1", "sbatch", ["refused", "invalid partition"]),
        ("exit 3", "sbatch", ["exit code 3", "without a word"]),
        ("echo thanks", "sbatch", ["no job id", "thanks"]),
        ("", "no_such_sbatch", ["no_such_sbatch cannot be run", "--submit_command"]),
        ("", "sbatch {{ path }}", ["submit_command", "path"]),
        ("", "sbatch 'x", ["submit_command", "No closing quotation"]),
    ],
)  # fmt: skip
def test_a_submission_that_fails_says_why(script: str, command: str, words: list[str], project: Path) -> None:
    fake_sbatch(project, script)
    done = call("--submit_command", command)
    assert done.exit_code == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.output
    assert not (project / "External/job012/flex_submission.json").exists()


def test_a_job_directory_is_not_queued_twice(project: Path) -> None:
    fake_sbatch(project, "echo Submitted batch job 4711")
    queue = executable(project.parent / "bin/squeue", "#!/bin/bash\necho PENDING\n")
    assert call().exit_code == 0
    done = call()
    assert done.exit_code == 1 and "job 4711 of this folder is PENDING" in done.stderr and "scancel" in done.stderr
    executable(queue, "#!/bin/bash\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    assert call().exit_code == 0


def test_all_that_is_wrong_is_told_before_anything_waits_in_a_queue(project: Path) -> None:
    fake_sbatch(project, "touch submitted; echo 1")
    done = call("--latent_dims", "77", "--gpus", "many", "--in_mask", "none.mrc", "--template", "no.sh")
    assert done.exit_code == 1
    for word in ("latent_dims: 77", "gpus: 'many'", "none.mrc", "no.sh"):
        assert word in done.stderr
    assert not (project / "submitted").exists()


def test_a_submission_that_is_refused_marks_no_job_as_failed(project: Path) -> None:
    from integration.local.cli import _commands, _execute

    assert _execute(_commands(), ["submit", "refine", "--o", "External/job012/", "--no_such", "3"], "flex-job") == 2
    assert not list((project / "External/job012").glob("RELION_JOB_EXIT_*"))


def test_no_option_has_two_meanings() -> None:
    ours = {entry.name for entry in parameters_of(SubmitOptions)}
    for job in JOBS.values():
        assert not ours & ({"o", "j", "in_parts", "in_3dref", "in_mask", "in_model"} | set(job.declared()))


# -- the end of a step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "leaves", "expected"),
    [
        (0, "SUCCESS", ["SUCCESS"]),
        (1, "FAILURE", ["FAILURE"]),
        (2, "ABORTED", ["ABORTED"]),
        (75, "", []),
        (143, "", []),
        (137, "", ["FAILURE"]),
    ],
)
def test_a_step_that_dies_without_a_word_fails(code: int, leaves: str, expected: list[str], project: Path) -> None:
    touch = f"touch External/job012/RELION_JOB_EXIT_{leaves}; " if leaves else ""
    executable(project.parent / "bin/flex-job", f"#!/bin/bash\n{touch}exit {code}\n")
    script = project / "External/job012/run_submit.script"
    script.write_text(render(submission()))
    assert subprocess.run(["bash", script], cwd=project, timeout=20, check=False).returncode == code
    left = sorted(path.name for path in (project / "External/job012").glob("RELION_JOB_EXIT_*"))
    assert left == [f"RELION_JOB_EXIT_{status}" for status in expected]
