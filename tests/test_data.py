"""What the notebooks 01_data, 02_tasks and 03_scenarios cannot say about themselves: whole files, foreign files, no
network, no pickle.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import types
import warnings
import zipfile
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from classimpression import scenarios
from classimpression.core.errors import ConfigError, DataError, LeakError, StateError
from classimpression.data import file_md5
from classimpression.core.provenance import package_folder
from classimpression.core.seeding import generator
from classimpression.data import DATA_VARIABLE, PARTS, as_bytes, as_split, augment, batches, data_root, load_medmnist
from classimpression.data import Split, read_npz
from classimpression.runs.configs import reported_repeats
from classimpression.scenarios import LARGER, SCENARIOS, download, from_arrays, from_folder, list_data, make_mini
from classimpression.scenarios import make_scenario, npz_bytes, scenario_info
from classimpression.tasks import from_splits

KEYS = [f"{p}_{k}" for p in ("train", "val", "test") for k in ("images", "labels")]


def medmnist_arrays(channels, n_classes, n=3, seed=0):
    "Arrays of MedMNIST's keys, shapes and dtypes, n images per class and split; pixel (0, 0) holds the class."
    rng, arrays = np.random.default_rng(seed), {}
    for part in ("train", "val", "test"):
        y = rng.permutation(np.repeat(np.arange(n_classes), n)).astype(np.uint8)
        shape = (len(y), 28, 28, 3) if channels == 3 else (len(y), 28, 28)
        x = rng.integers(0, 256, shape, dtype=np.uint8)
        x[:, 0, 0] = y.reshape(-1, *[1] * (x.ndim - 3))
        arrays |= {f"{part}_images": x, f"{part}_labels": y[:, None]}
    return arrays


@pytest.fixture
def toy():
    "Builds a scenario of six classes in tasks of 2, 1 and 3, four images of each class in every split."

    def make(sizes=(2, 1, 3), **more):
        a = medmnist_arrays(3, 6, n=4)
        return from_arrays(
            *[(a[f"{p}_images"], a[f"{p}_labels"]) for p in ("train", "val", "test")], sizes=list(sizes), **more
        )

    return make


# ---------------------------------------------------------------- files


def test_missing_folder_file_and_variable(tmp_path, monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(DataError, match=rf"root.*{DATA_VARIABLE}"):
        data_root()
    with pytest.raises(DataError, match="does not exist"):
        make_scenario("blood", root=tmp_path / "nowhere")
    with pytest.raises(DataError, match="there is no file .*bloodmnist.npz"):
        make_scenario("blood", root=tmp_path)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert data_root() == tmp_path
    with pytest.raises(DataError, match="there is no file"):
        make_scenario("organa")


@pytest.mark.parametrize("name", ["blood", "path", "organa", "tissue"])
def test_named_scenarios_on_files_of_the_same_kind(name, tmp_path):
    "Same keys, shapes and dtypes as MedMNIST's file; its MD5 differs, so it is taken only when verify=False says so."
    info = SCENARIOS[name]
    path = tmp_path / info.file
    np.savez_compressed(path, **medmnist_arrays(info.channels, info.n_classes))
    with pytest.raises(DataError, match="not the expected file"):
        make_scenario(name, root=tmp_path)
    s = make_scenario(name, root=tmp_path, verify=False)
    assert s.checksum == file_md5(path) != info.md5
    assert (s.n_classes, s.channels, s.size, tuple(s.sizes)) == (info.n_classes, info.channels, 32, info.sizes)
    for t, task in enumerate(s.tasks):
        with s.training(t, pool="new-train") as open_task:
            assert open_task is task and len(task.train) == 3 * info.sizes[t] == len(task.pool)
            assert torch.equal(
                task.train.x[:, 0, 2, 2].long(), task.train.y
            )  # natural order: the marked pixel, padded by 2
        assert s.test(upto=t).counts(s.n_classes).tolist() == [3] * task.n_seen + [0] * (s.n_classes - task.n_seen)
    assert s.n_train_seen_bytes(len(s.tasks) - 1) == 3 * s.n_classes * 28 * 28 * info.channels
    json.dumps(s.facts(), allow_nan=False)


def test_a_changed_file_is_read_again(tmp_path):
    info, path = SCENARIOS["tissue"], tmp_path / "tissuemnist.npz"
    np.savez(path, **medmnist_arrays(1, info.n_classes))
    first = make_scenario("tissue", root=tmp_path, verify=False).checksum
    np.savez(path, **medmnist_arrays(1, info.n_classes, seed=1))
    os.utime(path, ns=(1, 1))
    assert make_scenario("tissue", root=tmp_path, verify=False).checksum != first
    with pytest.raises(DataError, match="not the expected file"):
        make_scenario("tissue", root=tmp_path)  # the cache does not skip the check


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
def test_truncated_file(cut, tmp_path):
    path = tmp_path / "bloodmnist.npz"
    whole = npz_bytes(medmnist_arrays(3, 8))
    path.write_bytes(whole[:cut])
    with pytest.raises(DataError, match="damaged"):
        make_scenario("blood", root=tmp_path, verify=False)


def test_a_flipped_byte_is_noticed_without_the_md5(tmp_path):
    data = bytearray(npz_bytes({"x": np.arange(5000)}))
    data[len(data) // 3] ^= 255
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        read_npz(tmp_path / "x.npz")


class Bomb:
    "Makes a folder when it is unpickled."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("key", KEYS)
def test_object_arrays_are_never_unpickled(key, tmp_path):
    arrays = medmnist_arrays(3, 8) | {key: np.array([Bomb(tmp_path / "bomb")], dtype=object)}
    np.savez(tmp_path / "bloodmnist.npz", **arrays)
    with pytest.raises(DataError, match="pickled objects never"):
        make_scenario("blood", root=tmp_path, verify=False)
    assert not (tmp_path / "bomb").exists()


def test_object_and_ragged_arrays_from_a_user():
    with pytest.raises(DataError, match="object arrays"):
        as_split(np.array([Bomb("x")], dtype=object), [0])
    with pytest.raises(DataError, match="rectangular"):
        as_split([[1], [1, 2]], [0, 1], "NHW")


@pytest.mark.parametrize("shape", [(1000, 1000), (10**6, 10**6), (2**62, 8), (-1, 4)])
def test_declared_shapes_are_judged_before_memory_is_taken(shape, tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, dict(descr="<f8", fortran_order=False, shape=shape))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as z:
        z.writestr("x.npy", head.getvalue())
    with pytest.raises(DataError, match="declares .* but holds 0 bytes"):
        read_npz(tmp_path / "x.npz")


def test_cap_counts_all_arrays_and_zip_bombs_stay_packed(tmp_path):
    (tmp_path / "x.npz").write_bytes(npz_bytes({"a": np.zeros(10**6, np.uint8), "b": np.zeros(10**6, np.uint8)}))
    assert (tmp_path / "x.npz").stat().st_size < 10_000
    assert read_npz(tmp_path / "x.npz", max_bytes=2 * 10**6).keys() == {"a", "b"}
    with pytest.raises(DataError, match="2,000,000 bytes"):
        read_npz(tmp_path / "x.npz", max_bytes=2 * 10**6 - 1)
    assert read_npz(tmp_path / "x.npz", max_bytes=10**6, keys=["b"]).keys() == {"b"}


def test_missing_keys_and_wrong_channels(tmp_path):
    arrays = medmnist_arrays(1, 11)
    np.savez(tmp_path / "a.npz", **{k: v for k, v in arrays.items() if k != "val_labels"})
    with pytest.raises(DataError, match="lacks the arrays .'val_labels'."):
        load_medmnist(tmp_path / "a.npz", None, 1, 11)
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(DataError, match="should hold colour images"):
        load_medmnist(tmp_path / "b.npz", None, 3, 11)
    with pytest.raises(DataError, match="outside 0..7"):
        load_medmnist(tmp_path / "b.npz", None, 1, 8)
    with pytest.raises(TypeError):
        load_medmnist(tmp_path / "b.npz")  # the checksum is never skipped silently


# ---------------------------------------------------------------- images and labels

GOOD = np.zeros((4, 3, 8, 8), np.float32)
ONE_NAN = np.where(np.arange(4)[:, None, None, None] == 2, np.nan, GOOD)


@pytest.mark.parametrize(
    "x, y, more, message",
    [
        (ONE_NAN, [0] * 4, {}, "image 2 holds NaN"),
        (ONE_NAN * 0 + np.inf, [0] * 4, {}, "NaN or infinity"),
        (GOOD - 0.1, [0] * 4, {}, r"negative numbers.*shift them first, from \[-1, 1\] by \(x \+ 1\) / 2$"),
        (GOOD + 2, [0] * 4, {}, r"must lie in \[0, 1\]"),
        (GOOD + 255, [0] * 4, {}, "divide by 255"),
        (GOOD.astype(np.int64), [0] * 4, {}, "not int64"),
        (GOOD.astype(complex), [0] * 4, {}, "complex"),
        (GOOD[:, :2], [0] * 4, {}, "1 or 3 channels"),
        (GOOD, [0] * 4, dict(layout="NHWC"), "finds 8"),
        (GOOD[0], [0] * 3, {}, "needs 4 axes"),
        (GOOD[:0], [], {}, "no images"),
        (GOOD[..., :0], [0] * 4, {}, "no images"),
        (GOOD, [0] * 3, {}, "4 images but 3 labels"),
        (GOOD, [0, 1, 2, 3], dict(n_classes=3), "outside 0..2"),
        (GOOD, [0, 1, 2, -1], {}, "labels start at 0"),
        (GOOD, [0.0, 1.0, 2.0, 3.0], {}, "whole numbers"),
        (GOOD, [True, False, True, False], {}, "whole numbers"),
        (GOOD, np.zeros((4, 2), int), {}, "one label per image"),
        (GOOD, np.zeros(4, np.uint64) + 2**63, {}, "outside"),
        (torch.zeros(4, 3, 8, 8) + torch.nan, [0] * 4, {}, "NaN"),
    ],
)
def test_bad_images_and_labels(x, y, more, message):
    with pytest.raises(DataError, match=message):
        as_split(x, y, **more)


def test_odd_but_honest_arrays():
    "Read-only, reversed, big-endian, Fortran-ordered, half-precision: the same split."
    x = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    want = as_split(x, [0, 1, 2, 3]).digest()
    frozen = x.copy()
    frozen.flags.writeable = False
    for other in (
        frozen,
        x[::-1].copy()[::-1],
        np.asfortranarray(x),
        (x / 255).astype(">f8"),
        (x / 255).astype(np.float16),
        torch.from_numpy(x) / 255,
    ):
        assert as_split(other, np.arange(4, dtype=np.uint16)).digest() == want


def test_augment_and_batches_depend_on_the_generator_only():
    x = torch.rand(6, 3, 8, 8)
    assert torch.equal(augment(x, generator(0, "a"), 2, True), augment(x, generator(0, "a"), 2, True))
    assert not torch.equal(augment(x, generator(0, "a"), 2, True), augment(x, generator(1, "a"), 2, True))
    state, s = torch.get_rng_state(), as_split(x, range(6))
    order = [torch.cat([y for _, y in batches(s, 4, generator(seed))]).tolist() for seed in (0, 0, 1)]
    assert order[0] == order[1] != order[2]
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ConfigError):
        augment(x, generator(0), shift=-1)
    with pytest.raises(ConfigError):
        batches(s, 2.5)


# ---------------------------------------------------------------- plans


def test_any_class_order(toy):
    for order in list(permutations(range(6)))[::97]:
        s = toy(class_order=list(order))
        assert s.class_names == [f"class {c}" for c in order] == sum((t.class_names for t in s.tasks), [])
        for task in s.tasks:
            original = torch.tensor(task.classes)[task.train.y - task.n_old]
            assert torch.equal(task.train.x[:, 0, 0, 0].long(), original)  # the marked pixel
        assert torch.equal(torch.tensor(order)[s.test(2).y], s.test(2).x[:, 0, 0, 0].long())


@pytest.mark.parametrize("sizes", [(1,) * 6, (6,), (1, 5), (5, 1), (3, 1, 2), (1, 2, 2, 1)])
def test_any_split_into_tasks(toy, sizes):
    s = toy(sizes)
    assert [len(t.classes) for t in s.tasks] == list(sizes)
    assert sum((t.labels for t in s.tasks), []) == list(range(6))
    for t, task in enumerate(s.tasks):
        assert (task.n_old, task.n_seen) == (sum(sizes[:t]), sum(sizes[: t + 1]))
        with s.training(t, pool="all-val", selection="new-val"):
            assert (len(task.train), len(task.pool), len(task.selection)) == (
                4 * sizes[t],
                4 * task.n_seen,
                4 * sizes[t],
            )


@pytest.mark.parametrize(
    "sizes, order, message",
    [
        ((2, 1, 3), [0, 1, 2, 3, 4, 4], r"classes \[4\] more than once"),  # a class twice in one task
        ((2, 1, 3), [0, 1, 1, 2, 3, 4], r"classes \[1\] more than once"),  # a class in two tasks
        ((2, 1, 3), [0, 1, 2, 3, 4], r"lacks the classes \[5\]"),
        ((2, 1, 3), [0, 1, 2, 3, 4, 6], "must lie in"),
        ((2, 1, 3), [0, 1, 2, 3, 4, "5"], "whole number"),
        ((2, 0, 4), None, "task size"),
        ((2, -1, 5), None, "task size"),
        ((2, 1.5, 2.5), None, "whole number"),
        ((True, 5), None, "whole number"),
        ((), None, "sizes is empty"),
    ],
)
def test_impossible_plans(toy, sizes, order, message):
    with pytest.raises(ConfigError, match=message):
        toy(sizes, class_order=order)


def test_sizes_that_do_not_fit_the_data(toy):
    for sizes in ((2, 3), (2, 5)):
        with pytest.raises(ConfigError, match=f"add up to {sum(sizes)}, but the labels name 6 classes"):
            toy(sizes)
    with pytest.raises(ConfigError, match="add up to 9"):
        make_scenario(sizes=[4, 5])
    with pytest.raises(DataError, match="do not fit in 20x20"):
        make_scenario(size=20)
    with pytest.raises(ConfigError, match="size must lie in"):
        toy(size=0)


@pytest.mark.parametrize("part", range(3))
def test_a_class_must_have_images_in_every_split(part):
    x, y = np.zeros((6, 8, 8, 3), np.uint8), np.arange(6)
    repeats = [(x, y)] * 3
    repeats[part] = (x[:5], y[:5])
    with pytest.raises(DataError, match=rf"class 5.*{('train', 'val', 'test')[part]} split"):
        from_arrays(*repeats, sizes=[3, 3])


def test_unknown_scenario():
    for name in ("derma", "", None, ["blood"], "../blood"):
        with pytest.raises(ConfigError, match="choose from blood-mini, blood, path, organa, tissue"):
            make_scenario(name)


# ---------------------------------------------------------------- what may be read


def test_training_sees_its_own_task_only(toy):
    s = toy()
    with s.training(1) as task:
        assert task.train.y.unique().tolist() == task.labels == [2] and task.val.y.unique().tolist() == [2]
        assert task.pool is None and task.selection is None
        for read in (
            lambda: s.tasks[0].train,
            lambda: s.tasks[0].val,
            lambda: s.tasks[2].train,
            lambda: s.tasks[2].pool,
            lambda: s.test(1),
            lambda: s.test(0),
            lambda: s.joint(1),
            lambda: s.training(2).__enter__(),
        ):
            with pytest.raises(LeakError):
                read()
    for read in (
        lambda: task.train,
        lambda: task.val,
        lambda: task.pool,
        lambda: task.selection,
        lambda: s.tasks[0].train,
        lambda: s.training(1).__enter__(),
        lambda: s.training(0).__enter__(),
    ):
        with pytest.raises(LeakError):
            read()
    assert len(s.test(1)) == 12 and len(s.tasks[2].train) == 12
    assert len(s.joint(2, reference=True)) == 24
    assert not any("test" in name for name in dir(task) if not name.startswith("_"))
    with pytest.raises(LeakError):
        s.tasks[2].read(2, "test")


def test_a_failed_training_can_be_repeated_but_opens_nothing_else(toy):
    s = toy()
    with pytest.raises(ZeroDivisionError), s.training(1, pool="test") as task:
        raise ZeroDivisionError
    assert task.pool is None and len(s.test(1)) == 12
    with pytest.raises(LeakError):
        _ = s.tasks[0].train  # task 1 had begun
    with s.training(1) as task:
        assert len(task.train) == 4


def test_opening_a_later_task_first_is_a_resume(toy):
    s = toy()
    with s.training(2, pool="all-val") as task:
        assert len(task.train) == 12 and len(task.pool) == 24
    with pytest.raises(LeakError):
        _ = s.tasks[1].train


@pytest.mark.parametrize(
    "pool, expect", [("new-train", [2]), ("new-val", [2]), ("all-val", [0, 1, 2]), ("test", [0, 1, 2])]
)
def test_pool_is_images_without_labels_in_random_order(toy, pool, expect):
    s = toy()
    part = pool.split("-")[-1]
    with s.training(1, pool=pool, seed=5) as task:
        images = task.pool
    assert type(images) is torch.Tensor and images.dtype == torch.uint8 and not images.__dict__
    classes = images[:, 0, 0, 0].long()  # the marked pixel, known to this test only
    assert classes.unique().tolist() == expect
    source = {"train": s.joint(2, reference=True), "test": s.test(2)}.get(part)
    if source is not None:
        source = source.where(expect).x
        assert sorted(map(bytes, images.flatten(1).numpy())) == sorted(
            map(bytes, source.flatten(1).numpy())
        ) and not torch.equal(images, source)
    again = toy()
    with again.training(1, pool=pool, seed=5) as task:
        assert torch.equal(task.pool, images)
    other = toy()
    with other.training(1, pool=pool, seed=6) as task:
        assert not torch.equal(task.pool, images)


@pytest.mark.parametrize("selection, expect", [("new-val", [2]), ("all-val", [0, 1, 2]), ("test", [0, 1, 2])])
def test_selection(toy, selection, expect):
    with toy().training(1, selection=selection) as task:
        assert task.selection.y.unique().tolist() == expect and task.pool is None
        assert torch.equal(task.selection.x, task.val.x) == (selection == "new-val")


def test_unknown_words_and_tasks(toy):
    s = toy()
    for words in (dict(pool="val"), dict(selection="best"), dict(t=3), dict(t=-1), dict(t=True)):
        with pytest.raises(ConfigError), s.training(**({"t": 0} | words)):
            pass
    with pytest.raises(ConfigError):
        s.test(upto=3)
    with pytest.raises(ConfigError):
        s.test(upto=-1)
    with s.training(0) as task:
        assert len(task.train) == 8  # nothing was opened or closed by the failures


def test_carried_images_and_bytes(toy):
    s = toy()
    assert [s.carried_images("all-val", "last", t) for t in range(3)] == [0, 8, 12]
    assert [s.carried_images("all-val", "all-val", t) for t in range(3)] == [0, 8, 12]  # the same images, counted once
    assert [
        s.carried_images(p, q, 2) for p in ("none", "new-train", "new-val", "test") for q in ("last", "new-val", "test")
    ] == [0] * 12
    assert [toy(size=32).n_train_seen_bytes(t) for t in range(3)] == [n * 28 * 28 * 3 for n in (8, 12, 24)]


# ---------------------------------------------------------------- image folders


@pytest.fixture
def folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "val", "test"):
        for c, name in enumerate(["atrium", "valve", "wall"]):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(2):
                image.new("RGB", (9, 9), (c * 80, i, ("train", "val", "test").index(part))).save(
                    tmp_path / "images" / part / name / f"{i}.png"
                )
    return tmp_path / "images"


@pytest.mark.filterwarnings("ignore:images of")
def test_image_folder(folder):
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "wall" / "notes.txt").write_text("no image")
    s = from_folder(folder, sizes=[1, 2], class_order=[2, 0, 1], size=12, name="echo")
    assert s.class_names == ["wall", "atrium", "valve"] and (s.name, s.size, s.channels) == ("echo", 12, 3)
    assert s.tasks[0].train.x.amax((0, 2, 3)).tolist() == [160, 1, 0]
    assert from_folder(folder, sizes=[3], channels=1, resize=6).tasks[0].val.x.shape == (6, 1, 6, 6)


def test_bad_image_folders(folder, tmp_path):
    from PIL import Image

    target = folder / "val" / "wall" / "0.png"
    with pytest.raises(DataError, match="there is no folder"):
        from_folder(tmp_path / "nowhere", sizes=[3])
    with pytest.raises(ConfigError, match="holds 3 classes"):
        from_folder(folder, sizes=[2])
    good = target.read_bytes()
    for damage, message in ((good[:40], "cannot read the image"), (b"", "cannot read the image")):
        target.write_bytes(damage)
        with pytest.raises(DataError, match=message):
            from_folder(folder, sizes=[3])
    Image.new("RGB", (9, 8)).save(target)
    with pytest.raises(DataError, match="another size"):
        from_folder(folder, sizes=[3])
    Image.new("I;16", (9, 9), 999).save(target)
    with pytest.raises(DataError, match="bits=10"):
        from_folder(folder, sizes=[3])
    target.write_bytes(good)
    (folder / "val" / "extra").mkdir()
    with pytest.raises(DataError, match="holds the classes"):
        from_folder(folder, sizes=[3])


@pytest.mark.filterwarnings("ignore:images of")
def test_a_folder_is_read_once_and_again_when_a_file_changes(folder, monkeypatch):
    read, seen = scenarios.read_image, []
    monkeypatch.setattr(scenarios, "read_image", lambda p, *more: seen.append(p) or read(p, *more))
    a, b = (from_folder(folder, sizes=sizes, size=12) for sizes in ([1, 2], [3]))
    n = len(seen)
    assert n and a.checksum == b.checksum and from_folder(folder, sizes=[3], channels=1).checksum != a.checksum
    assert len(seen) == 2 * n, "another way of reading is another reading"
    from_folder(folder, sizes=[3])
    shutil.copy(folder / "train" / "atrium" / "0.png", folder / "train" / "atrium" / "1.png")
    assert from_folder(folder, sizes=[3], size=12).checksum != a.checksum and len(seen) == 4 * n


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes((folder / "val" / "wall" / "0.png").read_bytes())
    (folder / "val" / "wall" / "2.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="leaves its folder"):
        from_folder(folder, sizes=[3])


def test_without_pillow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match="pip install"):
        from_folder(folder, sizes=[3])


# ---------------------------------------------------------------- embedded data


def test_embedded_subset_is_what_its_facts_say():
    path = package_folder() / "assets" / "blood_mini.npz"
    facts = json.loads(path.with_suffix(".json").read_text())
    assert file_md5(path) == facts["md5"] == SCENARIOS["blood-mini"].md5
    assert (
        facts["source_md5"] == SCENARIOS["blood"].md5
        and "CC BY 4.0" in facts["licence"]
        and "Acevedo" in facts["citation"]
    )
    assert path.stat().st_size < 8e6
    arrays = read_npz(path)
    assert list(arrays) == KEYS
    for part, n in facts["per_class"].items():
        assert np.bincount(arrays[f"{part}_labels"].ravel()).tolist() == [n] * 8


def test_embedded_subset_can_be_made_again(tmp_path):
    source = Path(os.environ.get(DATA_VARIABLE, "/nowhere")) / "bloodmnist.npz"
    if not source.is_file():
        pytest.skip(f"{DATA_VARIABLE} does not hold bloodmnist.npz")
    want = json.loads((package_folder() / "assets" / "blood_mini.json").read_text())
    facts = make_mini(source, tmp_path / "blood_mini.npz", seed=want["seed"])
    assert facts["rows"] == want["rows"]
    new, old = (read_npz(p / "blood_mini.npz") for p in (tmp_path, package_folder() / "assets"))
    assert all(np.array_equal(new[k], old[k]) for k in KEYS)


def test_subset_draws_from_each_split_alone(tmp_path):
    np.savez(tmp_path / "full.npz", **(full := medmnist_arrays(3, 8, n=6)))
    make = lambda name, **more: make_mini(tmp_path / "full.npz", tmp_path / name, per_class=(3, 2, 1), md5=None, **more)
    assert make("a.npz")["md5"] == make("b.npz")["md5"] == file_md5(tmp_path / "a.npz")
    assert make("c.npz", seed=1)["rows"] != make("a.npz")["rows"]
    for part, n in (("train", 3), ("val", 2), ("test", 1)):
        small = read_npz(tmp_path / "a.npz")
        there = {x.tobytes(): int(y[0]) for x, y in zip(full[f"{part}_images"], full[f"{part}_labels"], strict=True)}
        drawn = [
            (x.tobytes(), int(y[0])) for x, y in zip(small[f"{part}_images"], small[f"{part}_labels"], strict=True)
        ]
        assert all(there[x] == y for x, y in drawn) and len(set(drawn)) == 8 * n
    with pytest.raises(DataError, match="not the expected file"):
        make_mini(tmp_path / "full.npz", tmp_path / "d.npz")
    with pytest.raises(DataError, match="fewer than 200 images"):
        make_mini(tmp_path / "full.npz", tmp_path / "d.npz", md5=None)
    assert not (tmp_path / "d.npz").exists()


# ---------------------------------------------------------------- network and imports


def test_loading_opens_no_socket_and_is_quick(monkeypatch, toy):
    def refuse(*a, **k):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    start = time.perf_counter()
    s = make_scenario()
    assert time.perf_counter() - start < 2  # 0.2 s on an idle machine
    with s.training(0, pool="new-train") as task:
        next(batches(task.train, 40, generator(0)))
    toy()
    list_data()
    download("blood-mini")


@pytest.fixture
def medmnist(monkeypatch, tmp_path):
    "A stand-in for the medmnist package, whose download writes what the test says."
    calls, package = [], types.ModuleType("medmnist")

    def dataset(split, root, download):
        calls.append(root)
        if isinstance(package.content, Exception):
            raise package.content
        (Path(root) / "tissuemnist.npz").write_bytes(package.content)

    package.INFO, package.TissueMNIST, package.calls = {"tissuemnist": {"python_class": "TissueMNIST"}}, dataset, calls
    monkeypatch.setitem(sys.modules, "medmnist", package)
    return package


def test_download_replaces_a_file_only_by_a_right_one(medmnist, monkeypatch, tmp_path):
    path = tmp_path / "tissuemnist.npz"
    path.write_bytes(b"earlier")
    for content, message in ((b"half", "damaged"), (RuntimeError("no network"), "no network.*by hand")):
        medmnist.content = content
        with pytest.raises(DataError, match=message):
            download("tissue", tmp_path)
        assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]
    medmnist.content = npz_bytes(medmnist_arrays(1, 8))
    monkeypatch.setitem(
        SCENARIOS, "tissue", replace(SCENARIOS["tissue"], md5=hashlib.md5(medmnist.content).hexdigest())
    )
    assert download("tissue", tmp_path) == path and path.read_bytes() == medmnist.content
    assert (
        len(medmnist.calls) == 3 and download("tissue", tmp_path) == path and len(medmnist.calls) == 3
    )  # already here: no call
    assert next(r for r in list_data(tmp_path) if r["scenario"] == "tissue")["status"] == "present"


def test_more_pixels_of_the_same_images(tmp_path, monkeypatch):
    "MedMNIST+: a file of 64 pixels is a scenario of that size, with the classes, tasks and repeats of the small one."
    arrays = medmnist_arrays(3, 8) | {
        f"{p}_images": np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8) for p in PARTS
    }
    arrays |= {f"{p}_labels": (np.arange(16) % 8)[:, None].astype(np.uint8) for p in PARTS}
    (tmp_path / "bloodmnist_64.npz").write_bytes(npz_bytes(arrays))
    with pytest.raises(DataError, match="its MD5 is not 2b94928a"):
        make_scenario("blood-64", root=tmp_path)
    scenario = make_scenario("blood-64", root=tmp_path, verify=False)
    assert (scenario.size, scenario.name, scenario.sizes) == (64, "blood-64", [2, 2, 2, 2])
    assert make_scenario("blood-mini").size == 32, "small ones are padded"
    assert scenario.test(0).x.shape[1:] == (3, 64, 64) and reported_repeats("blood-64") == reported_repeats("blood")
    with pytest.raises(ConfigError, match="blood-64, blood-128"):
        make_scenario("blood-63", root=tmp_path)


def test_download_needs_a_package_and_a_folder(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(DataError, match="pip install medmnist"):
        download("tissue", tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        download("tissue", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="unknown scenario"):
        download("derma", tmp_path)


def test_unwritable_folder(medmnist, tmp_path, monkeypatch):
    def refuse(*a, **k):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(StateError, match="Permission denied"):
        download("tissue", tmp_path)


def test_checksums_are_those_of_medmnist():
    info = pytest.importorskip("medmnist.info").INFO
    for name in ("blood", "path", "organa", "tissue"):
        for pixels, md5 in LARGER[name].items():
            assert md5 == info[f"{name}mnist"][f"MD5_{pixels}"]
            assert (
                info[f"{name}mnist"][f"url_{pixels}"].partition("?")[0].endswith(scenario_info(f"{name}-{pixels}").file)
            )
        ours, theirs = SCENARIOS[name], info[SCENARIOS[name].file.removesuffix(".npz")]
        assert (ours.md5, ours.channels, ours.n_classes, ours.licence) == (
            theirs["MD5"],
            theirs["n_channels"],
            len(theirs["label"]),
            theirs["license"],
        )


def test_quiet_import():
    code = """
import sys, torch, numpy, random, warnings
state, threads, filters = torch.get_rng_state(), torch.get_num_threads(), list(warnings.filters)
import classimpression.scenarios
assert torch.equal(state, torch.get_rng_state())
assert threads == torch.get_num_threads() and filters == list(warnings.filters)
s = classimpression.scenarios.make_scenario()
heavy = ("torchvision", "pandas", "matplotlib", "scipy", "sklearn", "PIL", "medmnist", "fastcore")
print([m for m in heavy if m in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0 and out.stdout.strip() == "[]", out.stdout + out.stderr


def test_no_module_brings_a_compiler():  # 70 MB of every run's memory, measured in `studies/peers`
    code = """
import importlib, pkgutil, sys
import classimpression
for m in pkgutil.walk_packages(classimpression.__path__, "classimpression."):
    if not m.name.endswith("__main__"):
        importlib.import_module(m.name)
print("classimpression.studies.peers" in sys.modules, [m for m in ("triton", "sympy") if m in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0 and out.stdout.strip() == "True []", out.stdout + out.stderr


# ---------------------------------------------------------------- eight bits, and means of a million images


@pytest.mark.parametrize(
    "x, bits, want",
    [
        (np.uint16([0, 257, 65535, 32768]), None, [0, 1, 255, 128]),  # 16-bit files
        (np.uint16([0, 16, 4095]), 12, [0, 1, 255]),  # 12 bits in a 16-bit file, said
        (np.uint16([0, 16, 4095]), 16, [0, 0, 15]),  # so dark indeed, said
        (np.int32([0, 257, 65535]), 16, [0, 1, 255]),
        (np.float32([0, 1.9, 255]), 8, [0, 1, 255]),  # floats that stand for bytes
        (np.float64([0, 0.5, 1]), None, [0, 128, 255]),
        (np.array([True, False]), None, [255, 0]),
        (np.uint16([0, 0]), None, [0, 0]),  # black is black in any depth
        (np.uint8([3, 4]), 12, [3, 4]),  # bytes stay bytes
    ],
)
def test_numbers_become_bytes(x, bits, want):
    assert as_bytes(x, bits).tolist() == want


@pytest.mark.parametrize(
    "x, bits, message",
    [
        (np.uint16([0, 4095]), None, "bits=12"),
        (np.int16([0, 255]), None, "bits=8"),
        (np.float32([0, 255]), None, "bits=8"),
        (np.uint16([0, 4096]), 12, "bits=13"),
        (np.int32([-1, 9]), 8, "negative"),
        (np.float32([np.inf]), 8, "infinity"),
        (np.uint16([1]), 7, "bits must lie"),
        (np.uint16([1]), 8.5, "whole number"),
        (np.uint8([1]), 0, "bits must lie"),
        (np.uint16([0, 60000]), 17, "bits=17, but numbers of uint16 have 16 bits at most; .* bits=16 "),
        (np.uint16([0, 4095]), 24, "numbers of uint16 have 16 bits at most; .* bits=12 "),
        (np.float32([-500, 499]), None, "negative numbers, down to -500, .* by a window"),
        (np.float32([-500, 499]), 9, "by a window"),
        (np.float32([-1, 1]), 8, r"from \[-1, 1\] by"),
        (np.int16([-1024, 3071]), None, "by a window"),
    ],
)
def test_numbers_of_unknown_brightness_are_refused(x, bits, message):
    with pytest.raises((DataError, ConfigError), match=message):
        as_bytes(x, bits)


def test_advice_for_negative_numbers_leads_on():
    for x in (np.float32([-1, 0, 1]), np.float32([-500, 0, 500])):
        with pytest.raises(DataError) as e:
            as_bytes(x)
        advice = "(x + 1) / 2" if "(x + 1) / 2" in str(e.value) else "(x.clip(a, b) - a) / (b - a)"
        assert advice in str(e.value) and "bits=" not in str(e.value)
        assert as_bytes(eval(advice, dict(x=x, a=x.min(), b=x.max()))).tolist() == [0, 128, 255]


def test_many_black_images_are_refused(tmp_path):
    "Zeros and ones that were meant as black and white, in arrays, splits, folders and the estimator."
    from PIL import Image

    from classimpression.adapters.estimator import IncrementalClassifier
    from classimpression.adapters.recommend import recommend

    g, y = np.random.default_rng(0), np.arange(12) % 2
    x = [g.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8) for _ in PARTS]
    slip = [(a / 255).astype(np.uint8) for a in x]
    made = lambda x, **more: from_arrays(*[(a, y) for a in x], sizes=[1, 1], **more)
    message = "no pixel in the 12 images of {} is brighter than 1 of 255"
    with pytest.raises(DataError, match=message.format("train")):
        made(slip)
    with pytest.raises(DataError, match=message.format("test")):
        made([*x[:2], slip[2]])
    with pytest.raises(DataError, match=message.format("val")):
        from_splits(*[as_split(a, y, "NHWC") for a in (x[0], slip[1], x[2])], sizes=[1, 1])
    with pytest.raises(DataError, match="12 images of X"):
        IncrementalClassifier("ncm", "smoke", layout="NHWC").fit(slip[0], y)
    with pytest.raises(DataError, match="12 images of X"):
        recommend(slip[0], y, layout="NHWC")
    assert made([a > 127 for a in x]).tasks[0].train.x.max() == 255
    with pytest.raises(DataError, match="of 24 bits the highest are empty. Say fewer"):
        made([a.astype(np.int32) * 256 for a in x], bits=24)
    assert made([a.astype(np.uint16) * 10 for a in x], bits=16).tasks[0].train.x.max() == 9, "so dark, said"
    for part, images in zip(PARTS, (x[0], slip[1], x[2])):
        for i, image in enumerate(images):
            (tmp_path / part / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / part / "ab"[i % 2] / f"{i}.png")
    with pytest.raises(DataError, match=message.format(".*/val")):
        from_folder(tmp_path, sizes=[1, 1])


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(resize=-5), "resize .one number for height and width. must lie in"),
        (dict(resize=(32, 32)), r"resize .* must be a whole number, not \(32, 32\)"),
        (dict(resize=0), "resize .* must lie in"),
        (dict(channels=4), "channels must be 1 .grey. or 3 .colour., not 4"),
        (dict(channels="3"), "channels must be a whole number"),
        (dict(bits=0), r"bits must lie in \[8, 32\]"),
        (dict(patients=["ann"]), "patients must be True or False"),
        (dict(layout="NHWC"), "from_folder has no argument 'layout'; it takes folder, .*overlap$"),
        (dict(overlaps="mark"), "did you mean 'overlap'"),
        (dict(class_names=["a"]), "classes are named by their folders"),
        (dict(class_order=[0, 0, 1]), "more than once"),
    ],
)
def test_a_folders_arguments_are_judged_before_an_image_is_opened(folder, monkeypatch, how, message):
    monkeypatch.setattr(scenarios, "read_image", None)
    with pytest.raises(ConfigError, match=message):
        from_folder(folder, sizes=[1, 2], **how)
    with pytest.raises(ConfigError, match="folder must be a path, not None"):
        from_folder(None, sizes=[1, 2])


def test_advice_for_labels_and_patients_of_arrays(toy):
    import pandas as pd

    g, names = np.random.default_rng(0), np.array(["b", "a", "c"])
    y = [np.array([0, 1, 2, 0]), np.array([0, 2, 1, 1]), np.array([1, 2, 0, 2])]
    x = [g.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8) for _ in PARTS]
    made = lambda y, *patients, **more: from_arrays(*zip(x, y, *patients), sizes=[2, 1], **more)
    for text in (lambda k: names[k], lambda k: names.astype(object)[k], lambda k: pd.Categorical(names[k])):
        with pytest.raises(DataError, match="number the names of all splits at once") as e:
            made([text(k) for k in y])
        advice = str(e.value).partition("each: names, y = ")[2].partition(";")[0]
        known = dict(numpy=np, **{part: text(k) for part, k in zip(PARTS, y)})
        found, numbers = eval(advice, known)
        assert made(np.split(numbers, 3), class_names=list(found)).class_names == ["a", "b", "c"]
    with pytest.raises(DataError, match="object arrays are never read, and this one holds NoneType, str"):
        made([np.array(["a", None, "c", "b"], object)] * 3)
    with pytest.raises(DataError, match="val: 4 images but 3 patients; name one for each image"):
        made(y, [["p", "q", "r", "s"], ["t", "u", "v"], ["w", "x", "y", "z"]])
    with pytest.raises(DataError, match=r"4 images but patients \[3\]; name one for each image"):
        Split(torch.zeros(4, 1, 2, 2).byte(), torch.arange(4), torch.arange(3))
    with pytest.raises(ConfigError, match="a class name must be text, not int: 1"):
        made(y, class_names=[1, 2, 3])
    with pytest.raises(ConfigError, match="from_arrays has no argument 'class_name'; .*did you mean 'class_names'"):
        made(y, class_name=["a", "b", "c"])


def test_a_folder_that_cannot_name_a_class_is_named(folder):
    for part in PARTS:
        (folder / part / "valve").rename(folder / part / "-valve")
    why = "because spreadsheets take that for a formula"
    with pytest.raises(ConfigError, match=f"of the folder .*train/-valve; rename it in train, val, test.*{why}"):
        from_folder(folder, sizes=[1, 2])


def test_a_plan_without_a_second_task_is_said(folder):
    with pytest.warns(
        UserWarning, match=r"one task of 3 classes: nothing .* say sizes=\[2, 1\] .--sizes 2 1."
    ) as heard:
        for _ in range(2):  # what is said before a run, and the run
            make_scenario(f"folder:{folder}+resize16")
    assert sum("one task" in str(w.message) for w in heard) == 1
    x, y = np.arange(27, dtype=np.uint8).reshape(3, 3, 3, 1), np.zeros(3, int)
    with pytest.warns(UserWarning, match="one class: every answer is right"):
        from_arrays((x, y), (x + 30, y), (x + 60, y), sizes=[1])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the plan")
        from_folder(folder, sizes=[2, 1], channels=1)


def test_names_of_folders_in_a_terminal(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(DataError, match="or pass patients=False .in a terminal folder:PATH without .patients."):
        make_scenario("folder:images+patients")
    for nothing in ("folder:", "folder: ", "folder:/"):
        with pytest.raises(ConfigError, match="names no folder; say where the images are, such as folder:images"):
            make_scenario(nothing)
    with pytest.raises(ConfigError, match="unknown scenario 'images'; .*did you mean folder:images"):
        make_scenario("images")
    monkeypatch.chdir(folder)
    assert make_scenario("folder:.").name == "folder-images"


def test_one_picture_under_two_labels_is_said(folder):
    from PIL import Image

    g, y = np.random.default_rng(0), np.arange(12) % 3
    x = [g.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8) for _ in PARTS]
    train = (np.concatenate([x[0], x[0][:4], x[0][:1]]), np.concatenate([y, (y[:4] + 1) % 3, y[:1]]))
    with pytest.warns(UserWarning, match="^9 of 17 images of train are there with another label too"):
        from_arrays(train, (x[1], y), (x[2], y), sizes=[2, 1])
    Image.effect_noise((9, 9), 50).save(folder / "val" / "wall" / "0.png")
    shutil.copy(folder / "val" / "wall" / "0.png", folder / "val" / "valve" / "2.png")
    with pytest.warns(UserWarning, match="2 of 7 images of val are there with another label too"):
        from_folder(folder, sizes=[2, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_arrays((np.concatenate([x[0]] * 2), np.concatenate([y] * 2)), (x[1], y), (x[2], y), sizes=[2, 1])


def test_zeros_in_front_of_a_patients_number_are_said(tmp_path):
    from PIL import Image

    g, y = np.random.default_rng(0), np.arange(12) % 2
    part = lambda whose: (g.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), y, whose)
    text = [f"{i:04}" for i in range(12)]
    with pytest.warns(UserWarning, match="12 pairs of patients differ by zeros in front only .*first '0' and '0000'"):
        from_arrays(part(np.arange(12)), part(np.arange(20, 32)), part(text), sizes=[1, 1])
    for k, (p, who) in enumerate(zip(PARTS, ("P7", "P8", "P007"))):
        for name in "ab":
            (tmp_path / p / name / who).mkdir(parents=True)
            Image.fromarray(part([])[0][k]).save(tmp_path / p / name / who / "1.png")
    with pytest.warns(UserWarning, match="1 pairs of patients differ by zeros in front only .*first 'p7' and 'p007'"):
        from_folder(tmp_path, sizes=[1, 1], patients=True)


def test_means_are_taken_in_pieces():
    """A piece at a time needs less memory than all at once and gives the same; `tests/faults/numbers.py` has the large
    case.
    """
    from classimpression.carryover import class_means
    from classimpression.data import Split, mean_of
    from faults import peak

    x = torch.arange(256, dtype=torch.uint8).repeat(30_000 * 784 // 256 + 1)[: 30_000 * 784].view(-1, 1, 28, 28)
    y = torch.arange(len(x)) % 2
    with peak() as grown:
        means = torch.stack([mean_of(x, y == k, most=2**23) for k in range(2)]).float()
    slow = torch.stack([x[k::2].sum(0, dtype=torch.int64) / (255 * len(x) / 2) for k in range(2)]).float()
    assert torch.allclose(means, slow, atol=1e-6) and torch.allclose(class_means(Split(x, y), [0, 1]), slow, atol=1e-6)
    assert grown[0] < 8e7, f"{grown[0]:,} bytes"  # in one piece: 150 MB
    assert torch.equal(mean_of(x[:9], y[:9] == 0), mean_of(x[:9], y[:9] == 0, most=10**9))


def test_arrays_of_twelve_bits_say_so():
    from classimpression.adapters.estimator import IncrementalClassifier

    x = np.uint16(np.random.default_rng(0).integers(0, 4096, (12, 32, 32)))
    pair = (x, np.arange(12) % 2)
    with pytest.raises(DataError, match="bits=12"):
        from_arrays(pair, pair, pair, sizes=[2], layout="NHW", overlap="mark")
    scenario = from_arrays(pair, pair, pair, sizes=[2], layout="NHW", overlap="mark", bits=12)
    assert scenario.tasks[0].val.x.max() > 200
    assert IncrementalClassifier("ncm", layout="NHW", bits=12).as_images(x).max() > 200
    with pytest.raises(DataError, match="bits=12"):
        IncrementalClassifier("ncm", layout="NHW").as_images(x)


def test_one_patient_is_in_one_split():
    x = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 4, 4).contiguous()
    part = lambda rows, who: Split(x[rows], torch.tensor([0, 1]), torch.tensor(who))
    own = from_splits(part([0, 1], [0, 1]), part([2, 3], [2, 3]), part([4, 5], [4, 4]), sizes=[2])
    assert own.tasks[0].n_seen == 2
    with pytest.raises(DataError, match="patients are in two splits: 1 in train and test"):
        from_splits(part([0, 1], [0, 1]), part([2, 3], [2, 3]), part([4, 5], [1, 4]), sizes=[2])


def test_a_read_only_disk_is_said_to_be_one(tmp_path, monkeypatch):
    from classimpression.core.files import write_bytes

    def refused(*args, **kw):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refused)  # as such a disk does even for a file that is not there
    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(StateError, match="Read-only file system. Free some space or choose another"):
        write_bytes(tmp_path / "a.json", b"{}")


def test_what_results_are_measured_on_is_not_seen_in_training(toy):
    chosen = toy().on_validation()
    with chosen.training(0) as task:
        assert len(task.train) and task.selection is None
        with pytest.raises(LeakError, match="results are measured on the validation images"):
            task.val
    assert len(chosen.test(0)) == len(toy().tasks[0].val)
    with toy().training(0) as task:
        assert len(task.val)


def test_one_rule_says_who_a_patient_is(tmp_path):
    "Arrays, folders and manifests: spellings of one name are one person, words for nobody are refused."
    import pandas as pd

    from classimpression.data import NOBODY, number_patients, person
    from classimpression.echo.manifest import read_manifest

    named = ["P1", "p1 ", "1.0", 1.0, 1, "01", np.str_("P1"), np.int64(1)]
    with pytest.warns(UserWarning, match="2 patients whose name or number is spelled in two ways"):
        (who,) = number_patients(named)
    assert who.tolist() == [0, 0, 1, 1, 1, 2, 0, 1]
    assert [person(str(n)) for n in named] == ["p1", "p1", "1", "1", "1", "01", "p1", "1"]
    for missing in (pd.array(["p", None], dtype="string"), ["p", "NA"], ["p", pd.NaT], ["p", "Unknown "]):
        with pytest.raises(DataError, match="1 images are nobody's"):
            number_patients(missing)
    rows = [dict(path=f"{i}.png", view="PLAX", patient=n) for i, n in enumerate(["P1", "p1 ", *sorted(NOBODY)])]
    with pytest.raises(DataError, match="rows 4, 5, 6, 7, 8 ... of the manifest: no patient"):
        read_manifest(pd.DataFrame(rows))
    g = np.random.default_rng(0)
    part = lambda whose: (g.integers(0, 255, (8, 8, 8, 3), dtype=np.uint8), np.arange(8) % 2, whose)
    with pytest.warns(UserWarning, match="spelled"), pytest.raises(DataError, match="patients are in two splits"):
        from_arrays(part(["P1", "P2"] * 4), part(["p3"] * 8), part(["p1"] * 8), sizes=[1, 1])


def test_patients_are_part_of_what_images_are_known_by(toy):
    x, y = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    known = [Split(x, y, p).digest() for p in (None, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3]))]
    assert len(set(known)) == 3 and known[0] == Split(x.clone(), y.clone()).digest()
