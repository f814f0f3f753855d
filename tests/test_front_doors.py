"""What a user hands in, and where: surroundings that must not change a result, objects that are refused, paths and
names as they come. Each of these went wrong once.
"""

import inspect
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import unicodedata

import numpy as np
import pytest
import torch
from torch import nn

import classimpression as ci
import classimpression.runs.configs
from classimpression.core.errors import ConfigError, DataError, StateError
from classimpression.core.files import read_json, write_json
from classimpression.core.provenance import package_folder
from classimpression.core.seeding import usual_torch
from classimpression.methods.registry import METHODS, first_task
from classimpression.models import NETWORKS
from classimpression.runs.run_store import RunResult
from classimpression.scenarios import MADE, from_folder, within
from classimpression.training import History


def pictures(n=14, k=2, seed=0, pixels=16):
    "Dark noise; a class has a colour of its own."
    r, y = np.random.RandomState(seed), np.repeat(np.arange(k), n)
    x = r.randint(0, 60, (n * k, pixels, pixels, 3))
    x[np.arange(n * k), y * 3] += 150
    return x.astype(np.uint8), y


def scenario(name="mine", sizes=(2, 2), **more):
    parts = [pictures(14, sum(sizes), i) for i in range(3)]
    return ci.from_arrays(*parts, sizes=list(sizes), name=name, layout="NHWC", **more)


def estimator(method="ncm"):
    return ci.IncrementalClassifier(method, "smoke", layout="NHWC")


def total(model):
    return sum(float(p.double().sum()) for p in model.state_dict().values())


@pytest.fixture
def registries():
    "Methods, networks and scenarios as they were."
    before = [(d, dict(d)) for d in (METHODS, NETWORKS, MADE)]
    yield
    for d, old in before:
        d.clear()
        d.update(old)


@pytest.fixture
def folder(tmp_path):
    from PIL import Image

    for part in ("train", "val", "test"):
        x, y = pictures(12, 4, len(part))
        for i, (image, c) in enumerate(zip(x, y)):
            path = tmp_path / "images" / part / "abcd"[c] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return tmp_path / "images"


def command(*words, cwd, **env):
    env = os.environ | dict(PYTHONPATH=str(package_folder().parent), OMP_NUM_THREADS="1", TQDM_DISABLE="1") | env
    line = [sys.executable, "-m", "classimpression", *words]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, errors="replace", timeout=300)


def test_autocast_of_the_caller_changes_nothing(tmp_path):
    seen = []
    for on in (False, True):
        cfg = ci.profile_config("smoke", "census", scenario="mine", out=str(tmp_path / str(on)))
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            seen.append(total(ci.run(cfg, scenario()).model))
    assert seen[0] == seen[1]
    with torch.autocast("cpu", torch.bfloat16):
        with usual_torch():
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
        fitted = estimator("census").fit(*pictures())
    assert fitted.predict(pictures()[0]).shape == (28,)


def test_a_fork_does_not_wait_for_a_thread_that_it_does_not_have():
    held, go_on = threading.Event(), threading.Event()

    def hold():
        with usual_torch():
            held.set()
            go_on.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = multiprocessing.get_context("fork").Process(target=usual_torch().__enter__)
    child.start()
    child.join(30)
    go_on.set()
    thread.join()
    assert child.exitcode == 0


def test_gradients_after_a_first_prediction_without_them(tmp_path):
    estimator("slda").fit(*pictures()).save(tmp_path / "s.safetensors")
    est = ci.IncrementalClassifier.load(tmp_path / "s.safetensors")
    with torch.inference_mode():
        est.predict(pictures()[0])
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    est.carry_.model(x)[0, 0].backward()
    assert x.grad.abs().sum() > 0


def test_the_error_before_the_first_task_crosses_processes():
    with pytest.raises(StateError) as raised:
        estimator().predict(pictures()[0])
    again = pickle.loads(pickle.dumps(raised.value))
    assert type(again).__name__ == "NotFitted" and str(again) == str(raised.value)


def test_labels_in_another_form_of_unicode():
    names = np.array(["b", "é"])[pictures()[1]]
    est = estimator().fit(pictures()[0], names)
    assert est.score(pictures()[0], [unicodedata.normalize("NFD", n) for n in names]) == est.score(pictures()[0], names)


def test_patients_can_be_routed():
    sklearn = pytest.importorskip("sklearn")
    with sklearn.config_context(enable_metadata_routing=True):
        est = estimator().set_fit_request(patients=True, sample_weight=True)
        assert est.get_metadata_routing().fit.requests["patients"] is True
        with pytest.raises(ConfigError, match=r"score takes no \['patients'\]"):
            est.set_score_request(patients=True)


def test_a_foreign_file_is_not_called_damaged_alone(tmp_path):
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(StateError, match="no file of this library, or damaged"):
        ci.IncrementalClassifier.load(tmp_path / "w.pt")
    odd = os.fsdecode(b"arch\xe4v")
    with pytest.raises(StateError, match="is not UTF-8"):
        estimator().fit(*pictures()).save(tmp_path / odd / "a.safetensors")
    assert read_json(write_json(tmp_path / "a.json", dict(out=odd))) == dict(out=odd)


def test_a_copy_of_a_result_under_another_name(tmp_path):
    done = ci.run(ci.profile_config("smoke", "ncm", scenario="mine", out=str(tmp_path)), scenario())
    done.folder.rename(tmp_path / "archive")
    with pytest.raises(StateError, match="give the folder its first name back"):
        RunResult.load(tmp_path / "archive")


def test_the_home_folder_in_paths_to_write(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    estimator().fit(*pictures()).save("~/a.safetensors")
    ci.run(ci.profile_config("smoke", "ncm", scenario="mine", out="~/runs"), scenario())
    made = {p.name for p in (tmp_path / "home").iterdir()} - {".cache"}  # once for all tests of this process
    assert made == {"a.safetensors", "runs"}
    assert not (tmp_path / "~").exists()


def test_data_of_ones_own_under_a_published_name(tmp_path):
    cfg = ci.profile_config("smoke", "ncm", scenario="tissue", out=str(tmp_path))
    with pytest.raises(ConfigError, match="'tissue' is a data set of MedMNIST"):
        ci.run(cfg, scenario("tissue"))
    with pytest.raises(ConfigError, match="the data must be a Scenario"):
        ci.run(cfg, "folder:images")


def test_a_registered_scenario_that_does_what_it_likes(tmp_path, registries):
    ci.register_scenario("own", lambda name, order, sizes, root, size, verify: scenario("own"))
    with pytest.raises(ConfigError, match=r"order \[3, 2, 1, 0\].*give both the same name, order and sizes"):
        ci.run(ci.profile_config("smoke", "ncm", scenario="own", class_order=[3, 2, 1, 0], out=str(tmp_path)))
    ci.register_scenario("none", lambda *what: None)
    with pytest.raises(ConfigError, match="returned NoneType; it has to return a Scenario"):
        ci.make_scenario("none")
    for name, make, why in (
        ("blood-224", scenario, "is a scenario of MedMNIST"),
        ("a/b", scenario, "must be a name of letters"),
        ("mine", 7, "give what makes it"),
    ):
        with pytest.raises(ConfigError, match=why):
            ci.register_scenario(name, make)


class Net(nn.Module):
    n_features = 8

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3)

    def features(self, x):
        return self.conv(x).mean((2, 3))


def test_methods_and_networks_that_break_the_contract(tmp_path, registries):
    @ci.method("stays", "Stays", tier="M0")
    def stays(carry, task, impressions, cfg):
        return first_task(task, cfg) if carry is None else (carry.model, History())

    @ci.method("plain", "Plain", tier="M0")
    def plain(carry, task, impressions, cfg):
        return nn.Sequential(nn.Flatten(), nn.Linear(768, task.n_seen)), History()

    for name, why in (("stays", "returned a model of 2 classes, 4 are due"), ("plain", "has to return a `Classifier`")):
        with pytest.raises(ConfigError, match=why):
            ci.run(ci.profile_config("smoke", name, scenario="mine", out=str(tmp_path)), scenario())
    with pytest.raises(ConfigError, match="give what makes it, a function of the channels"):
        ci.register_network("made", Net(3))


def test_other_objects_at_the_doors_of_export():
    with pytest.raises(ConfigError, match="give a classifier, a torch module"):
        ci.export_torch(estimator().fit(*pictures()))


def test_one_image_without_its_axis():
    est = estimator().fit(*pictures())
    with pytest.raises(DataError, match=r"a single image X is X\[None\]"):
        est.predict(pictures()[0][0])


def test_recommend_names_what_fits_and_refuses_plans():
    x, y = pictures(24, 4)
    few = dict(layout="NHWC", profile="smoke", outside=False)
    for wrong, why in (
        (dict(sizes=[0, 4]), "task size must lie in"),
        (dict(sizes=2), "sizes must be numbers of classes"),
        (dict(seed=-1), "seed"),
        (dict(candidates=("ncm",)), "candidates must be"),
    ):
        with pytest.raises(ConfigError, match=why):
            ci.recommend(x, y, **few | wrong)


def test_images_beside_the_classes_and_links_are_named(folder):
    (folder / "train" / "stray.png").write_bytes((folder / "train" / "a" / "0.png").read_bytes())
    with pytest.warns(UserWarning, match="train: 1 images beside the folders of classes, left out"):
        from_folder(folder, [2, 2])
    (folder / "val" / "a" / "z.png").symlink_to(folder.parent / "elsewhere.png")
    with pytest.raises(DataError, match="z.png, a link to .*elsewhere.png, leaves its folder"):
        from_folder(folder, [2, 2])
    (folder / "val" / "a" / "z.png").unlink()
    (folder / "val" / "a" / "z.png").symlink_to("z.png")
    with pytest.raises(DataError, match="z.png"):
        from_folder(folder, [2, 2])


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    def walk(top, onerror=None, **how):
        onerror(PermissionError(13, "Permission denied", str(top)))
        return iter(())

    monkeypatch.setattr("classimpression.scenarios.os.walk", walk)
    with pytest.raises(DataError, match="cannot read the folder .*train: Permission denied"):
        within(folder / "train")


def test_settings_of_a_run_and_what_is_typed_over_them(folder):
    from classimpression.cli import settings_of

    cfg = ci.profile_config("smoke", "joint", scenario=f"folder:{folder}", out=str(folder.parent / "o"))
    whole = str(write_json(folder.parent / "run.json", {k: v for k, v in vars(cfg).items()}))
    typed = settings_of(dict(lr=0.9), whole)
    assert typed.options["lr"] == 0.9 == ci.profile_config("smoke", "joint", scenario=f"folder:{folder}", lr=0.9).lr
    assert settings_of(dict(scenario=f"folder:{folder}"), whole).scenario == cfg.scenario
    marked = folder.parent / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + json.dumps(dict(method="slda")).encode())
    assert settings_of({}, str(marked)).method == "slda"
    idle = write_json(folder.parent / "idle.json", dict(method="slda", profile="smoke", synthesis_steps=3))
    with pytest.raises(ConfigError, match="learns from no impressions"):
        settings_of({}, str(idle))


@pytest.mark.slow
def test_names_that_a_terminal_cannot_show(folder):
    for part in ("train", "val", "test"):
        (folder / part / "a").rename(folder / part / "мышь")
    asked = ("run", "--method", "ncm", "--profile", "smoke", "--scenario", "folder:images", "--out", "o")
    done = command(*asked, cwd=folder.parent, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0 and r"\u043c\u044b\u0448\u044c" in done.stdout, done.stderr


def test_options_are_a_dictionary():
    with pytest.raises(ConfigError, match="options must be a dictionary"):
        ci.profile_config("smoke", "slda", options='{"shrinkage": 0.1}')


def test_settings_of_the_papers_loss_are_for_methods_that_read_them():
    with pytest.raises(ConfigError, match="lwf has losses of its own, so ..distillation"):
        ci.IncrementalClassifier("lwf", "smoke", layout="NHWC", settings=dict(distillation=50.0)).fit(*pictures())
    assert ci.runs.configs.profile_label(ci.profile_config("smoke", "lwf", distillation=50.0)) == "smoke"


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_tasks_by_hand_where_gradients_are_off(surroundings):
    "The loop of one's own, in surroundings that would leave nothing to learn from."
    cfg, ends = ci.TrainConfig(epochs=2, batch_size=8), []
    for around in (surroundings, torch.enable_grad):
        data, lwf = scenario(), METHODS["lwf"]
        with around():
            with data.training(0) as task:
                carry = ci.hand_over(ci.fit_task(None, task, None, cfg)[0], task, None)
            with data.training(1) as task:
                model, _ = lwf.fit(carry, task, None, cfg)
        ends.append(total(model))
    assert ends[0] == ends[1]


def test_a_method_that_is_an_object(tmp_path, registries):
    class Fit:
        def __call__(self, carry, task, impressions, cfg):
            return first_task(task, cfg) if carry is None else METHODS["fine-tuning"].fit(carry, task, None, cfg)

    ci.method("object", "An object", tier="M0")(Fit())
    cfg = ci.profile_config("smoke", "object", scenario="mine", out=str(tmp_path))
    assert ci.run(cfg, scenario()).data["method"] == "object"


def test_a_number_that_yaml_takes_for_a_word(folder):
    (folder / "settings.yaml").write_text("method: ncm\nlr: 1e-2\n")
    done = command("run", "--config", "settings.yaml", cwd=folder)
    assert done.returncode == 2 and "lr must be float, not '1e-2'; write 0.01" in done.stderr


def test_a_helper_in_another_file_makes_another_run(tmp_path, monkeypatch, registries):
    """A method imports its loss from a file of its own; in a notebook a function reads what other cells define. Either
    changes, and the old run is not this one.
    """
    from classimpression.core.provenance import foreign_source

    (tmp_path / "lossfile.py").write_text("SHARE = 1.0\n")
    lines = "import lossfile\nfrom classimpression.methods.registry import METHODS\n\n"
    lines += "def fit(carry, task, impressions, cfg):\n    return METHODS['fine-tuning'].fit(carry, task, None, cfg)\n"
    (tmp_path / "methodfile.py").write_text(lines)
    monkeypatch.syspath_prepend(tmp_path)
    import methodfile

    before = foreign_source(methodfile.fit)
    (tmp_path / "lossfile.py").write_text("SHARE = 2.0\n")
    assert foreign_source(methodfile.fit) != before
    cells = {"__name__": "__main__"}
    exec("def helper(x): return x\ndef fit(x): return helper(x) * RATE\nRATE = 1\n", cells)
    before = foreign_source(cells["fit"])  # typed where there is no source
    cells["RATE"] = 2
    assert before != foreign_source(cells["fit"])


def test_a_network_that_was_changed_is_not_the_runs(tmp_path, monkeypatch, registries):
    lines = f"from torch import nn\n\n{inspect.getsource(Net)}"
    (tmp_path / "netfile.py").write_text(lines)
    monkeypatch.syspath_prepend(tmp_path)
    import netfile

    ci.register_network("mine", netfile.Net)
    cfg = ci.profile_config("smoke", "ncm", network="mine", scenario="mine", out=str(tmp_path))
    done = ci.run(cfg, scenario())
    assert RunResult.load(done.folder).model is not None
    (tmp_path / "netfile.py").write_text(lines.replace("return self", "return -self"))
    with pytest.raises(StateError, match="another network 'mine'"):
        RunResult.load(done.folder).carry(1)


def test_a_cell_that_is_executed_again(registries):
    def define():
        def fit(carry, task, impressions, cfg):
            "The same function, made anew."

        ci.method("mine", "Mine", tier="M0")(fit)
        ci.register_scenario("mine", lambda *what: scenario())
        ci.register_network("mine", lambda channels: nn.Identity())
        return fit

    first, second = define(), define()
    assert first is not second and METHODS["mine"].fit is second
    with pytest.raises(ConfigError, match="exists already"):
        ci.method("slda", "Mine", tier="M0")(first)
    with pytest.raises(ConfigError, match="exists already"):
        ci.method("mine", "Mine", tier="M0")(estimator)


def test_a_scenario_of_ones_own_in_a_fresh_process(folder):
    own = f"""
import classimpression as ci

@ci.method("mine", "Mine", tier="M0")
def mine(carry, task, impressions, cfg):
    from classimpression.methods.registry import METHODS
    return METHODS["fine-tuning"].fit(carry, task, None, cfg)

ci.register_scenario("cells", lambda name, order, sizes, root, size, verify: ci.from_folder(
    {str(folder)!r}, sizes or [2, 2], class_order=order, name="cells"))
"""
    (folder / "own.py").write_text(own)
    code = "import classimpression as ci; print(ci.make_scenario('cells').sizes); import own; print('twice')"
    env = os.environ | dict(
        PYTHONPATH=f"{package_folder().parent}{os.pathsep}{folder}", CLASSIMPRESSION_METHODS=str(folder / "own.py")
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[2, 2]", "twice"], done.stderr


def test_rows_that_are_no_repeats(tmp_path):
    import pandas as pd

    from classimpression.report.ablations import differences
    from classimpression.report.comparison import main_rows, main_summary, paired_table
    from classimpression.runs.experiments import plan_runs
    from classimpression.runs.tables import merge_results

    runs = [
        ci.run(ci.profile_config("smoke", m, scenario="mine", out=str(tmp_path)), scenario()) for m in ("ncm", "slda")
    ]
    rows = main_rows(runs)
    assert len(main_summary(rows)) == 2 and len(paired_table(rows, "slda")) == 1
    for bad, said in (
        (pd.concat([rows, rows]), "they are no repeats"),
        (pd.concat([rows, rows.assign(profile="quick", seed=1)]), "runs of several kinds"),
    ):
        for table in (main_summary, lambda r: paired_table(r, "slda")):
            with pytest.raises(DataError, match=said):
                table(bad)
    variants = pd.concat([rows.assign(variant="strict"), rows.assign(variant="loose", protocol="pool=test")])
    assert len(differences(variants, "strict")) == 4, "a variant may be another protocol"
    merge_results(tmp_path / "all.json", runs)
    there = str(tmp_path / "there")
    more = ci.run(ci.profile_config("smoke", "ncm", scenario="mine", out=there), scenario(sizes=(2, 2, 1)))
    with pytest.raises(StateError, match="repeats of ncm"):
        merge_results(tmp_path / "all.json", [more])
    for wrong in (dict(methods="slda"), dict(methods=["slda"], repeats="[0]"), dict(methods=["slda"], seeds=3)):
        with pytest.raises(ConfigError, match="must be a list such as"):
            plan_runs("blood-mini", "smoke", **{"seeds": [0], **wrong})


def test_a_choice_stays_where_it_was_made(tmp_path):
    from classimpression.runs.tuning import with_choice

    chosen = with_choice({}, "slda", dict(scenario="blood-64", options={"shrinkage": 0.5}))
    own = with_choice({}, "slda", dict(scenario="folder-cells", options={"shrinkage": 0.25}))
    for n, (choices, name, expected) in enumerate(
        [(chosen, "blood", {"shrinkage": 0.5}), (own, "folder-cells", {"shrinkage": 0.25}), (own, "blood", None)]
    ):
        write_json(tmp_path / f"{n}.json", choices)
        cfg = ci.profile_config("standard", "slda", tuned=tmp_path / f"{n}.json", scenario=name)
        assert cfg.options == expected
