"The command line: what it refuses, and what it says."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from classimpression import cli
from classimpression.core.files import read_json, write_json


def call(capsys, *argv: str) -> tuple[int, str, str]:
    try:
        code = cli.main(list(argv))
    except SystemExit as e:
        code = e.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    "argv, message",
    [
        (["reproduce", "nonsense"], "unknown experiment 'nonsense'; known: foundation, main_table"),
        (["reproduce", "--only", "../../secrets"], "unknown experiment"),
        (["reproduce", "losses", "--profile", "smoke", "-p", "variants", '["no pity"]'], "no variants"),
        (["reproduce", "foundation", "--scheduler", "tcp://127.0.0.1:9", "--jobs", "-2"], "jobs"),
        (["reproduce", "-p", "sedes", "[1]"], "no parameter 'sedes'"),
        (["reproduce", "-p", "seeds", "3"], "must be of type list"),
        (["reproduce", "-p", "profile", "standard"], "give --profile"),
        (
            ["reproduce", "losses", "--profile", "smoke", "--scenario", "folder:/tmp"],
            "on your images: reproduce foundation",
        ),
        (["reproduce", "foundation", "--seeds", "1", "--repeats", "0"], "exclude each other"),
        (["tune", "census", "--scenario", "nope"], "unknown scenario 'nope'"),
        (["verify", "--sample", "0"], "verifies nothing"),
        (["data", "check", "--root", "/nonexistent"], "/nonexistent does not exist"),
        (["run", "--method", "slda", "--options", "{'lr': 1}"], "JSON in single quotes, such as"),
        (["reproduce", "--scenario", "bloot"], "bloot"),
        (["reproduce", "--methods", "magic"], "magic"),
        (["reproduce", "--profile", "slow"], "slow"),
        (["reproduce", "--scenario", "blood", "--root", "/nonexistent"], "/nonexistent"),
        (["run", "--method", "magic"], "magic"),
        (["run", "--method", "slda", "--scenario", "my/images"], "a folder of images is named by folder:my/images"),
        (["run", "--method", "slda", "--synthesis-steps", "5"], "['synthesis_steps'] would change nothing"),
        (["run", "--method", "joint", "--epochs", "-3"], "epochs"),
        (["run", "--method", "joint", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["data", "download", "bloot"], "bloot"),
        (["bench", "--rounds", "0"], "rounds"),
        (["bench", "--threads", "0"], "threads"),
    ],
)
def test_mistakes_are_refused_before_any_work(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLASSIMPRESSION_DATA", raising=False)
    code, out, err = call(capsys, *argv)
    assert code == 2 and message in err and "Traceback" not in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir()), "nothing may be written"


def test_unknown_options_are_refused(capsys):
    for argv in (["reproduce", "--sedes", "1"], ["run", "--epoch-s", "1"], ["run", "--epoch", "1"], ["reprodcue"], []):
        code, _, err = call(capsys, *argv)
        assert code == 2 and err.startswith("classimpression") and "--help" in err and err.count("\n") == 1


@pytest.mark.parametrize("option", ["--out", "--figures"])
def test_unwritable_output_is_refused_before_any_work(capsys, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    code, out, err = call(capsys, "reproduce", "--profile", "smoke", option, "file/inside")
    assert code == 2 and "cannot write" in err and (tmp_path / "file").read_text() == "kept"
    assert not list(tmp_path.rglob("*.ipynb")) and not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_has_an_example(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0 and f"example: classimpression {command}" in " ".join(out.split())


def test_help_needs_no_torch_and_shows_types_choices_and_defaults():
    code = (
        "import sys; from classimpression.cli import parser; p = parser()\n"
        "try: p.parse_args(['run', '--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    before = sum(os.times()[2:4])  # processor seconds of child processes
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    said = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stderr
    assert sum(os.times()[2:4]) - before < 1
    for shown in (
        "--epochs INT passes",
        "{cosine,paper,as_published,constant}",
        "learning rate of Adam in the synthesis [0.05]",
    ):
        assert shown in said
    assert "--mask" not in said and "where to compute" in said and "[auto]" in said


def test_every_setting_is_under_one_heading_of_the_help(capsys):
    from dataclasses import fields

    from classimpression.runs.configs import RunConfig

    grouped = [k for names in cli.GROUPS.values() for k in names]
    assert sorted(grouped) == sorted(f.name for f in fields(RunConfig))
    code, out, _ = call(capsys, "run", "--help")
    said = " ".join(out.split())
    assert code == 0 and all(f"\n{heading}:\n" in out for heading in cli.GROUPS)
    assert all(f" --{k.replace('_', '-')} " in said for k in grouped) and "[--epochs" not in out
    for shown in ("keys weights, sampling and dropout [0]", "[published, per scenario and task]", "[quick]"):
        assert shown in said


def test_settings_of_a_closed_set_refuse_other_words(capsys):
    from classimpression.runs.configs import RunConfig
    from classimpression.settings import CHOICES

    assert set(CHOICES) < set(cli.choices())
    for name, allowed in CHOICES.items():
        assert set(cli.choices()[name]) - {"auto"} == set(allowed) and getattr(RunConfig, name) in allowed
    for name in cli.choices():
        option = f"--{name.replace('_', '-')}"
        code, _, err = call(capsys, "run", option, "no-such-word")
        assert code == 2 and f"argument {option}: invalid choice: 'no-such-word' (choose from" in err, err
        assert err.count("\n") == 1


def test_every_list_names_what_the_other_commands_take(capsys):
    firsts = dict(methods="class-impression", scenarios="blood-mini", experiments="foundation", profiles="first")
    for what, name in firsts.items():
        code, out, _ = call(capsys, "list", what)
        names = [line.split()[0] for line in out.splitlines()]
        assert code == 0 and names[0] == name and len(names) == len(set(names)) > 4
    assert "small" not in names and "folder:PATH" in call(capsys, "list", "scenarios")[1]
    code, out, _ = call(capsys, "list")  # nothing named: all of them
    assert code == 0 and all(f"{what}:\n{name}" in out for what, name in firsts.items())


def test_profiles_of_plans_are_profiles_of_settings():
    from classimpression.runs.experiments import experiments
    from classimpression.runs.configs import profile

    planned = {p for e in experiments().values() for p in e.profiles}
    budgets = {d.get("budget", p) for e in experiments().values() for p, ds in e.profiles.items() for d in ds}
    assert planned | budgets <= set(cli.profiles())
    assert all(profile(p)["about"] and "all" in profile(p) for p in cli.profiles())


@pytest.mark.slow
def test_settings_of_a_run_are_accepted_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("method: slda\nprofile: smoke\nclass_order: [7, 6, 5, 4, 3, 2, 1, 0]\n")
    code, out, err = call(capsys, "run", "--config", "run.yaml", "--seed", "2")
    assert code == 0, err
    folder = out.splitlines()[-1]
    settings = json.loads(Path(folder, "settings.json").read_text())
    assert (settings["method"], settings["seed"], settings["class_order"][0]) == ("slda", 2, 7)
    for name in ("settings.json", "result.json"):
        again = call(capsys, "run", "--config", f"{folder}/{name}")
        assert again[0] == 0 and again[1] == out, "the same run, read again"


def test_a_folder_of_images_is_a_scenario(tmp_path, monkeypatch, capsys):
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("val", 2), ("test", 4)):
        for k in range(4):
            (folder := tmp_path / "cells" / part / f"kind{k}").mkdir(parents=True)
            for i in range(n):
                x = rng.integers(0, 40, (32, 32, 3)) + 60 * np.array([k == 1, k == 2, k == 3])
                Image.fromarray(x.astype("uint8")).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    code, out, err = call(
        capsys, "run", "--scenario", f"folder:{tmp_path}/cells", "--profile", "smoke", "--method", "slda"
    )
    assert code == 0, err
    assert out.startswith(
        "slda, profile smoke (a few steps of everything, to see that it works; the numbers mean nothing)\n"
    )
    assert "\non folder-cells: 2 + 2 classes, in order of arrival ['kind0', 'kind1'" in out
    result = json.loads(Path(out.splitlines()[-1], "result.json").read_text())
    assert result["scenario"]["sizes"] == [2, 2] and str(tmp_path) not in json.dumps(result)
    assert result["metrics"]["final_accuracy"] == 100.0
    code, out, err = call(capsys, "reproduce", "foundation", "--scenario", f"folder:{tmp_path}/cells", "--plan")
    assert code == 0 and "3 runs,    0 finished" in out and "foundation/folder-cells" in out, err
    Image.new("RGB", (40, 32)).save(tmp_path / "cells/train/kind0/0.png")  # another size
    asked = ["run", "--profile", "smoke", "--method", "slda", "--scenario"]
    code, out, err = call(capsys, *asked, "folder:cells")
    assert code == 2 and "sizes need resize=... (in a terminal folder:PATH+resize64)" in err
    code, out, err = call(capsys, *asked, "folder:cells+resize16+grey")
    result = json.loads(Path(out.splitlines()[-1], "result.json").read_text())
    assert code == 0 and (result["scenario"]["name"], result["scenario"]["channels"]) == (
        "folder-cells+resize16+grey",
        1,
    )
    assert call(capsys, *asked, "folder:cells+resize16+gray")[0] == 2


def test_info_is_json_without_names(capsys):
    code, out, _ = call(capsys, "info")
    facts = json.loads(out)
    assert code == 0 and facts["torch"] and {"foundation", "main_table", "report"} <= set(facts["experiments"])
    assert str(Path.home()) not in out
    assert facts["number_type"]["profiles"] == "float32" and len(facts["number_type"]["why"]) > 20


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt, 130), (cli.Terminated, 143)])
def test_whoever_stops_a_command_is_told_in_one_line(capsys, monkeypatch, error, code):
    def stop(args):
        raise error("stopped: 3 of 9 runs, 14 of 31 tasks are finished; the same command goes on from there")

    monkeypatch.setitem(cli.COMMANDS, "info", (lambda p: None, stop, "text", "info"))
    done, out, err = call(capsys, "info")
    assert done == code and err.strip().count("\n") == 0 and "14 of 31 tasks" in err and not out


@pytest.mark.slow
def test_sigterm_stops_everything_and_says_what_is_finished(tmp_path):
    import signal
    import time

    from classimpression.core.provenance import package_folder

    env = os.environ | dict(PYTHONPATH=str(package_folder().parent), OMP_NUM_THREADS="1", TQDM_DISABLE="1")
    argv = ["reproduce", "foundation", "--profile", "smoke", "--jobs", "1"]
    command = [sys.executable, "-m", "classimpression", *argv]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p = subprocess.Popen(command, cwd=tmp_path, env=env, **pipes)
    end = time.time() + 300
    while not list(tmp_path.rglob("task1/row.json")) and p.poll() is None and time.time() < end:
        time.sleep(0.1)
    p.send_signal(signal.SIGTERM)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 143, err
    said = [line for line in err.splitlines() if line]
    assert len(said) == 1 and "tasks are finished; the same command goes on from there" in said[0]
    assert "semaphore" not in err and "about" in out
    page = next(tmp_path.rglob("report.html")).read_text()
    assert "refresh" not in page and said[0].removeprefix("classimpression: ") in page, "the page says so too"


def test_data_list(capsys, tmp_path):
    (tmp_path / "bloodmnist.npz").write_bytes(b"not this")
    code, out, _ = call(capsys, "data", "list", "--root", str(tmp_path))
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert (
        code == 0
        and "embedded" in lines["blood-mini"]
        and "wrong checksum" in lines["blood"]
        and "missing" in lines["organa"]
    )
    assert call(capsys, "data", "check", "--root", str(tmp_path))[0] == 1


@pytest.mark.parametrize(
    "argv, meant",
    [
        (["run", "--method", "class-impresion"], "did you mean 'class-impression'?"),
        (["run", "--scenario", "blod"], "did you mean 'blood'?"),
        (["reproduce", "fondation"], "did you mean 'foundation'?"),
        (["run", "--epoch", "3"], "did you mean '--epochs'; see classimpression run --help"),
    ],
)
def test_a_mistyped_name_gets_the_one_that_was_meant(argv, meant, capsys):
    with pytest.raises(SystemExit) as stop:
        sys.exit(cli.main(argv))
    assert stop.value.code == 2 and meant in capsys.readouterr().err


def test_every_command_says_which_code_runs_where_a_clone_has_other_code(capsys, tmp_path, monkeypatch):
    clone = tmp_path / "classimpression"
    clone.mkdir()
    (clone / "__init__.py").write_text("def half(")  # as somebody leaves it between two edits
    monkeypatch.chdir(tmp_path)
    for argv in (["list", "profiles"], ["data", "list"]):
        code, out, err = call(capsys, *argv)
        assert code == 0 and out and "is not used" in err and str(clone) in err and err.count("\n") == 1


TABLE = Path(__file__).parent.parent / "figures/orders/blood_runs.json"


@pytest.mark.skipif(not TABLE.exists(), reason="the committed results are not beside the tests")
def test_settings_of_an_earlier_version_are_what_they_were(tmp_path):
    row = next(r for r in read_json(TABLE) if r["method"] == "fine-tuning")
    assert "initialisation" not in row["settings"], "made before the setting existed"
    cfg = cli.settings_of({}, str(write_json(tmp_path / "settings.json", row["settings"])))
    assert (cfg.initialisation, cfg.options) == ("torch", row["settings"]["options"])
