"What callbacks are told, and what TensorBoard and MLflow would get."

import sys
import types

import pytest

from classimpression.runs.surroundings import LOGGERS, loggers
from classimpression.core.errors import ConfigError
from classimpression.core.listening import Callback
from classimpression.runs.runner import profile_config, run


class Heard(Callback):
    "Remembers every call."

    def __init__(self):
        self.calls = []

    def on_run_start(self, name, settings):
        self.calls.append(("start", name, settings["method"]))

    def on_epoch(self, task, epoch, epochs, values):
        self.calls.append(("epoch", task, epoch, epochs, sorted(values)))

    def on_task_end(self, row):
        self.calls.append(("task", row["task"]))

    def on_run_end(self, result):
        self.calls.append(("end", result["metrics"]["final_accuracy"]))


class Writer:
    "A stand-in for TensorBoard's writer."

    made = []

    def __init__(self, folder):
        self.folder, self.scalars, self.closed = folder, [], False
        Writer.made.append(self)

    def add_text(self, name, text):
        self.text = text

    def add_scalar(self, name, value, step):
        assert isinstance(value, float)
        self.scalars.append((name, step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


def test_a_run_tells_its_callbacks_and_those_of_the_variable(tmp_path, monkeypatch):
    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setenv(LOGGERS, f"tensorboard:{tmp_path}/curves")
    heard = Heard()
    cfg = profile_config("smoke", "fine-tuning", out=str(tmp_path), until=2, first_epochs=2)
    result = run(cfg, callbacks=[heard])
    assert heard.calls == [
        ("start", result.folder.name, "fine-tuning"),
        ("epoch", 0, 0, 2, ["cross_entropy", "lr"]),
        ("epoch", 0, 1, 2, ["cross_entropy", "lr"]),
        ("task", 1),
        ("epoch", 1, 0, 1, ["cross_entropy", "lr"]),
        ("task", 2),
        ("end", result.metrics["final_accuracy"]),
    ]
    (writer,) = Writer.made
    assert writer.folder == f"{tmp_path}/curves/{result.folder.name}" and writer.closed and "fine-tuning" in writer.text
    assert ("task 1/cross_entropy", 2) in writer.scalars and ("after each task/accuracy", 2) in writer.scalars
    run(cfg, callbacks=[heard])
    assert len(heard.calls) == 7, "a finished run is read, and nothing happens"


def test_until_ends_a_run_early_and_is_another_run(tmp_path):
    from classimpression.runs.run_store import run_folder

    short = profile_config("smoke", "slda", out=str(tmp_path), until=1)
    result = run(short)
    assert [r["task"] for r in result.data["tasks"]] == [1] and result.metrics["final_accuracy"] >= 50
    assert run_folder(short) != run_folder(profile_config("smoke", "slda", out=str(tmp_path)))
    with pytest.raises(ConfigError, match="until is 5, but blood-mini has 4 tasks"):
        run(profile_config("smoke", "slda", out=str(tmp_path), until=5))


def test_loggers_are_refused_before_work(monkeypatch):
    assert loggers("") == []
    with pytest.raises(ConfigError, match="known: tensorboard, mlflow"):
        loggers("wandb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("tensorboard", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(ConfigError, match=f"{name} is not installed: pip install"):
            loggers(name)


def test_a_run_that_stops_closes_what_was_opened(tmp_path, monkeypatch):
    class Broken(Callback):
        closed = 0

        def on_task_end(self, row):
            raise RuntimeError("no luck")

        def on_run_stopped(self):
            self.closed += 1

    broken = Broken()
    with pytest.raises(RuntimeError, match="no luck"):
        run(profile_config("smoke", "ncm", out=str(tmp_path), until=2), callbacks=[broken])
    assert broken.closed == 1
