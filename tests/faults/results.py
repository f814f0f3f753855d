"Files of runs that were changed, cut, swapped or lost."

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from classimpression.carryover import load_carryover, load_tensors, save_tensors
from classimpression.core.files import write_json
from classimpression.models import rebuild
from classimpression.runs.run_store import RunResult
from classimpression.runs.runner import run

from . import fault
from .toys import copied, finished, numbers, rewrite, scenario

ANEW = ("left as it was", "made anew")


def deep(path: str, value):
    "Set a value in nested facts: tasks.1.accuracy"

    def change(facts):
        facts = copy.deepcopy(facts)
        *way, last = path.split(".")
        inner = facts
        for k in way:
            inner = inner[int(k)] if k.isdigit() else inner[k]
        last = int(last) if last.isdigit() else last
        inner[last] = value(inner[last]) if callable(value) else value
        return facts

    return change


RESULT = {
    "balanced accuracy up by 40 points": deep("metrics.balanced_accuracy", lambda v: v + 40),
    "final accuracy of another run": deep("metrics.final_accuracy", 12.5),
    "less forgetting": deep("metrics.forgetting", -1.0),
    "accuracy after task 1": deep("tasks.0.accuracy", 99.0),
    "worst class after task 2": deep("tasks.1.worst_class_recall", 77.7),
    "accuracy matrix": deep("tasks.1.row.0", 99.9),
    "one test image moved in a confusion matrix": deep("tasks.1.confusion.0.0", lambda v: v + 1),
    "confusion of half the classes": deep("tasks.1.confusion", [[9, 1], [1, 9]]),
    "negative counts": deep("tasks.1.confusion.0.0", -3),
    "counts as text": deep("tasks.1.confusion.0.0", "9"),
    "another seed": deep("seed", 7),
    "another method": deep("method", "joint"),
    "lowered tier": deep("tier", "M0"),
    "unknown tier": deep("tasks.0.tier", "M9"),
    "data_free": deep("data_free", False),
    "looser protocol called strict": deep("settings.pool", "test"),
    "k_min of 1 called strict": deep("settings.k_min", 1),
    "one of two tasks": lambda r: r | dict(tasks=r["tasks"][:1]),
    "no tasks": deep("tasks", []),
    "tasks in another order": lambda r: r | dict(tasks=r["tasks"][::-1]),
    "other classes": deep("tasks.1.classes", [0]),
    "class order that is none": deep("scenario.class_order", [0, 0, 2]),
    "sizes that do not add up": deep("scenario.sizes", [1, 1]),
    "empty metrics": deep("metrics", {}),
    "row of another run": deep("tasks.1.run", "lwf-seed0-a-b"),
    "name of another run": deep("run_id", "class-impression-seed0-0000000000-000000"),
    "carried images in a data-free run": deep("tasks.1.carried_images", 5),
    "no environment": lambda r: {k: v for k, v in r.items() if k != "environment"},
    "a list": lambda r: [r],
    "another schema": deep("schema", 2),
}


@fault("identity", "result.json: {what}, digest {digest}", what=RESULT, digest=ANEW)
def _(folder, what, digest):
    path = copied(folder)[1] / "result.json"
    rewrite(path, RESULT[what], digest == "made anew")
    RunResult.load(path.parent)


TEXTS = {
    "NaN": '{"schema": 1, "metrics": NaN}',
    "infinity": '{"schema": Infinity}',
    "half a file": '{"schema": 1, "tasks": [',
    "nothing": "",
    "100,000 brackets": "[" * 100_000,
    "bytes that are no text": "\xff\xfe",
    "a number": "3",
}


@fault("storage", "result.json holds {text}", says="result.json", text=TEXTS)
def _(folder, text):
    path = copied(folder)[1] / "result.json"
    path.write_bytes(TEXTS[text].encode("latin-1"))
    RunResult.load(path.parent)


@fault("identity", "result.json of another seed in this run's folder", says="is the result of")
def _(folder):
    path = copied(folder)[1] / "result.json"
    shutil.copy(finished(seed=1) / "result.json", path)
    RunResult.load(path.parent)


@fault(
    "identity",
    "{name} of another seed beside a finished run",
    says="not the file that this run wrote",
    name=("carry", "impressions"),
)
def _(folder, name):
    place = copied(folder)[1]
    shutil.copy(finished(seed=1) / "task2" / f"{name}.safetensors", place / "task2" / f"{name}.safetensors")
    r = RunResult.load(place)
    r.carry(1) if name == "carry" else r.impressions(1)


@fault("storage", "{name} of a finished run is gone", says="cannot read .* run again", name=("carry", "impressions"))
def _(folder, name):
    place = copied(folder)[1]
    (place / "task2" / f"{name}.safetensors").unlink()
    r = RunResult.load(place)
    r.carry(1) if name == "carry" else r.impressions(1)


ROWS = {
    "accuracy": deep("accuracy", 99.0),
    "confusion": deep("confusion.0.0", lambda v: v + 1),
    "task number": deep("task", 1),
    "classes": deep("classes", [0]),
    "run": deep("run", "another"),
    "no confusion": lambda r: {k: v for k, v in r.items() if k != "confusion"},
    "seconds as text": deep("seconds", {"training": "1"}),
}


def interrupted(folder: Path) -> tuple:
    "A run without its result, as it is when the last task had ended."
    cfg, place = copied(folder)
    whole = numbers(place)
    (place / "result.json").unlink()
    return cfg, place, whole


@fault("crash", "row.json of task 2 with another {what}, digest {digest}", "resumed", what=ROWS, digest=ANEW)
def _(folder, what, digest):
    cfg, place, whole = interrupted(folder)
    rewrite(place / "task2" / "row.json", ROWS[what], digest == "made anew")
    assert numbers(run(cfg, scenario()).folder) == whole


def spoil(place: Path, how: str) -> None:
    "Damage the carryover of task 2."
    carry = place / "task2" / "carry.safetensors"
    data = carry.read_bytes()
    tensors, facts = load_tensors(carry)
    more = {
        "cut": lambda: carry.write_bytes(data[:900]),
        "1,000 bytes zeroed": lambda: carry.write_bytes(data[:-1000] + bytes(1000)),
        "gone": carry.unlink,
        "empty": lambda: carry.write_bytes(b""),
        "of another seed": lambda: shutil.copy(finished(seed=1) / "task2" / carry.name, carry),
        "of task 1": lambda: shutil.copy(place / "task1" / carry.name, carry),
        "darker means, digest made anew": lambda: save_tensors(
            carry, tensors | dict(means=tensors["means"] / 2), facts
        ),
        "something else": lambda: save_tensors(carry, {"x": torch.ones(1)}, {}),
    }
    more[how]()


SPOILT = (
    "cut",
    "1,000 bytes zeroed",
    "gone",
    "empty",
    "of another seed",
    "of task 1",
    "darker means, digest made anew",
    "something else",
)


@fault("storage", "carryover of task 2: {how}", "resumed", how=SPOILT)
def _(folder, how):
    cfg, place, whole = interrupted(folder)
    spoil(place, how)
    assert numbers(run(cfg, scenario()).folder) == whole


@fault("storage", "impressions of task 2: {how}", "resumed", how=("cut", "zeroed", "of another seed", "empty"))
def _(folder, how):
    cfg, place, whole = interrupted(folder)
    path = place / "task2" / "impressions.safetensors"
    data = path.read_bytes()
    other = (finished(seed=1) / "task2" / path.name).read_bytes()
    path.write_bytes(
        {"cut": data[:500], "zeroed": data[:-400] + bytes(400), "of another seed": other, "empty": b""}[how]
    )
    (place / "task2" / "row.json").unlink()
    assert numbers(run(cfg, scenario()).folder) == whole


@fault(
    "crash",
    "killed {when}",
    "resumed",
    when=("before the result", "before row 2", "before carryover 2", "while a file was written", "twice"),
)
def _(folder, when):
    cfg, place, whole = interrupted(folder)
    if when in ("before row 2", "twice"):
        (place / "task2" / "row.json").unlink()
    if when in ("before carryover 2", "twice"):
        shutil.rmtree(place / "task2")
    if when == "while a file was written":
        (place / ".result.json.0123.tmp").write_text("half")
    assert numbers(run(cfg, scenario()).folder) == whole
    assert not list(place.rglob("*.tmp"))


CARRY = {
    "NaN in weights": lambda t, f: ({k: v * torch.nan if v.is_floating_point() else v for k, v in t.items()}, f),
    "three classes more": lambda t, f: (t, f | dict(n_classes=6)),
    "no classes": lambda t, f: (t, f | dict(n_classes=0)),
    "classes as text": lambda t, f: (t, f | dict(n_classes="3")),
    "means of one class only": lambda t, f: (t | dict(means=t["means"][:1]), f),
    "means above 1": lambda t, f: (t | dict(means=t["means"] + 1), f),
    "means that are NaN": lambda t, f: (t | dict(means=t["means"] * torch.nan), f),
    "an unknown tier": lambda t, f: (t, f | dict(tiers={"x": "M7"})),
    "a tier for a tensor that is not there": lambda t, f: (t, f | dict(tiers={"x": "M1"})),
    "a tensor without a tier": lambda t, f: (t | {"extra/x": torch.ones(2)}, f),
    "a network of 10^9 features": lambda t, f: (t, f | dict(head=f["head"] | dict(n_features=10**9))),
    "an unknown network": lambda t, f: (t, f | dict(network="vit")),
    "an unknown head": lambda t, f: (t, f | dict(head=dict(kind="os.system"))),
    "a head that is no dictionary": lambda t, f: (t, f | dict(head=[1, 2])),
    "channels below zero": lambda t, f: (t, f | dict(channels=-1)),
    "a layer of another size": lambda t, f: (
        {k: v[:1] if v.ndim > 1 and k.startswith("model") else v for k, v in t.items()},
        f,
    ),
    "a layer less": lambda t, f: ({k: v for k, v in t.items() if k != next(n for n in t if n.startswith("model/"))}, f),
}


@fault("hostile", "carryover with {what}, digest made anew", what=CARRY)
def _(folder, what):
    tensors, facts = load_tensors(finished() / "task2" / "carry.safetensors")
    path = save_tensors(folder / "carry.safetensors", *CARRY[what](tensors, facts))
    load_carryover(path, rebuild)


@fault(
    "identity", "settings.json of {whose}", says="belongs to a run with other", whose=("another seed", "other images")
)
def _(folder, whose):
    cfg, place, _whole = interrupted(folder)
    path = place / "settings.json"
    rewrite(path, deep("seed" if whose == "another seed" else "checksum", 5), False)
    run(cfg, scenario())


@fault("identity", "an old result without digests and manifest", "right")
def _(folder):
    place = copied(folder)[1]
    drop = lambda d: {k: v for k, v in d.items() if k not in ("digest", "files", "run")}
    rewrite(place / "result.json", lambda r: drop(r) | dict(tasks=[drop(t) for t in r["tasks"]]), False)
    assert RunResult.load(place).carry(1).n_classes == 3


@fault("storage", "a row that is a {kind}", "resumed", kind=("list", "number", "text"))
def _(folder, kind):
    cfg, place, whole = interrupted(folder)
    write_json(place / "task1" / "row.json", {"list": [1], "number": 3, "text": "x"}[kind])
    assert numbers(run(cfg, scenario()).folder) == whole


def spelled(folder, change) -> RunResult:
    "A result whose bytes were changed, and not what they say."
    path = copied(folder, "fine-tuning")[1] / "result.json"
    path.write_bytes(change(path.read_bytes()))
    return RunResult.load(path.parent)


FAKE = b'"metrics": {"balanced_accuracy": 99.0}'


@fault("identity", "result.json names a key twice, the false one {where}", "right", where=("first",))
def _(folder, where):
    assert (
        spelled(folder, lambda b: b.replace(b"{", b"{" + FAKE + b",", 1)).metrics
        == RunResult.load(finished("fine-tuning")).metrics
    )


@fault("identity", "result.json names a key twice, the false one last", says="does not fit its digest")
def _(folder):
    spelled(folder, lambda b: b.rstrip()[:-1] + b"," + FAKE + b"}")


@fault("hostile", "result.json in {code}", says="is not valid JSON", code=("utf-8-sig", "utf-16"))
def _(folder, code):
    spelled(folder, lambda b: b.decode().encode(code))


@fault("storage", "result.json with Windows line ends", "right")
def _(folder):
    assert spelled(folder, lambda b: b.replace(b"\n", b"\r\n")).metrics


MORE = {
    "a schema of 0": deep("schema", 0),
    "a schema of the future": deep("schema", 999),
    "a schema in words": deep("schema", "x"),
    "seconds as a number": deep("tasks.0.seconds", -5),
    "half a count": deep("tasks.1.confusion.0.0", lambda v: v + 0.5),
    "a count of 400 digits": deep("tasks.1.confusion.0.0", 10**400),
    "true as a count": deep("tasks.1.confusion.0.0", True),
    "a matrix that fits nothing else": deep("tasks.0.confusion", [[100, 0], [0, 100]]),
    "fewer bytes carried than the file holds": deep("tasks.1.carried_bytes", 1),
    "a task twice": lambda r: r | dict(tasks=[*r["tasks"], r["tasks"][-1]]),
    "an environment that is a list": deep("environment", [1]),
}


@fault("identity", "result.json with {what}, digest made anew", what=MORE)
def _(folder, what):
    place = copied(folder, "fine-tuning")[1]
    rewrite(place / "result.json", MORE[what], True)
    RunResult.load(place)


THERE = {
    "a link to where it was moved": lambda p: (
        shutil.move(p / "task1", p.parent / "away"),
        (p / "task1").symlink_to(p.parent / "away"),
    ),
    "a result that is a dangling link": lambda p: (
        (p / "result.json").unlink(),
        (p / "result.json").symlink_to("nowhere"),
    ),
    "an empty carryover": lambda p: (
        (p / "result.json").unlink(),
        (p / "task1" / "carry.safetensors").write_bytes(b""),
    ),
    "a row with a mark of byte order": lambda p: (
        (p / "result.json").unlink(),
        (p / "task1" / "row.json").write_bytes(b"\xef\xbb\xbf" + (p / "task1" / "row.json").read_bytes()),
    ),
    "a system's file": lambda p: (p / "Thumbs.db").write_bytes(b"x"),
}


@fault("storage", "a run that meets {what}", "resumed", what=THERE)
def _(folder, what):
    cfg, place = copied(folder)
    THERE[what](place)
    assert numbers(run(cfg, scenario()).folder) == numbers(finished())
