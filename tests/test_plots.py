"Tables and figures, from results with invented numbers that never reach figures/."

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from classimpression.report import curves, panels, plots
from classimpression.runs import tables
from classimpression.core.errors import DataError, StateError
from classimpression.runs.tables import example_result, merge_results, merge_rows, read_rows, summary, tidy


@pytest.fixture
def results():
    "Three tasks of unequal sizes, two methods, two seeds."
    ci = [
        example_result("class-impression", s, [[98 - s], [70 + s, 88], [60, 70 - s, 90]], sizes=[3, 1, 2])
        for s in range(2)
    ]
    joint = [
        example_result("joint", s, [[98], [97, 96], [95, 94 - s, 93]], "reference", sizes=[3, 1, 2]) for s in range(2)
    ]
    return ci + joint


@pytest.mark.parametrize(
    "draw", [curves.plot_accuracy, panels.plot_accuracy_matrix, panels.plot_confusion, panels.plot_recalls]
)
def test_figures_of_results(draw, results):
    for some in (results, results[:1], results[::-1]):
        png = plots.to_png(draw(some), dpi=60)
        assert png.startswith(b"\x89PNG") and len(png) < 100_000
        assert png == plots.to_png(draw(some), dpi=60), "the same results must give the same bytes"


def test_one_task_and_one_class():
    one = example_result("fine-tuning", 0, [[80]], "M0", sizes=[1])
    for draw in (
        curves.plot_accuracy,
        panels.plot_accuracy_matrix,
        panels.plot_confusion,
        panels.plot_recalls,
        lambda result: panels.plot_history(*panels.histories(result)),
    ):
        plots.to_png(draw(one), dpi=40)
    assert "100.0 %" in tables.reading(tidy([one])) and len(summary(tidy([one]))) == 1


@pytest.mark.slow
def test_many_classes_and_methods():
    many = [
        example_result(f"method-{i}", 0, [[90 - 8 * i], [40, 80 - i], [30, 35, 70]], sizes=[4, 4, 3]) for i in range(6)
    ]
    colours = plots.method_colours(r["method"] for r in many)
    assert len(set(colours.values())) == 6 and not set(colours.values()) & set(plots.COLOURS.values())
    for draw in (curves.plot_accuracy, panels.plot_accuracy_matrix, panels.plot_confusion, panels.plot_recalls):
        plots.to_png(draw(many), dpi=40)


def test_what_the_accuracy_figure_draws(results):
    ax = curves.plot_accuracy(results).axes[0]
    mine = ax.lines[0].get_ydata()
    assert np.allclose(mine, [np.mean([r["tasks"][t]["accuracy"] for r in results[:2]]) for t in range(3)])
    assert ax.get_ylabel().endswith("(%)") and [t.get_text() for t in ax.get_xticklabels()] == [
        "1 (3)",
        "2 (4)",
        "3 (6)",
    ]


def test_labels_do_not_overlap(results):
    same = [example_result(m, 0, [[90], [80, 80], [70, 70, 70]], sizes=[3, 1, 2]) for m in ("a", "b", "c")]
    fig = curves.plot_accuracy(same)
    fig.draw_without_rendering()
    boxes = sorted((t.get_window_extent() for t in fig.axes[0].texts), key=lambda b: b.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in zip(boxes, boxes[1:], strict=False))


def test_pictures(tmp_path):
    grey, y = torch.rand(6, 1, 28, 28), torch.tensor([0, 0, 1, 1, 2, 2])
    names = ["a", "b (with a remark)", "c"]
    for fig in (
        plots.plot_means(grey[:3], names),
        plots.plot_impressions_over_steps({0: grey, 100: grey}, y, names),
        plots.plot_real_beside_synthetic((grey * 255).byte(), y, grey[:3], y[:3], names),
        plots.plot_synthesis_terms({"total": torch.rand(5, 2)}),
    ):
        assert plots.save_figure(fig, tmp_path / "a.png") is fig
    assert not list(tmp_path.glob("*.tmp"))
    for bad in (
        lambda: plots.plot_means(grey, names),
        lambda: plots.image_grid({}),
        lambda: plots.plot_means(2 * torch.ones(3, 1, 4, 4), names),
        lambda: plots.plot_means(torch.full((3, 1, 4, 4), torch.nan), names),
        lambda: plots.plot_impressions_over_steps({}, y, names),
        lambda: plots.plot_synthesis_terms({}),
        lambda: curves.plot_accuracy([]),
        lambda: curves.plot_accuracy([{"a": 1}]),
    ):
        with pytest.raises(DataError):
            bad()


@pytest.mark.slow
def test_settings_of_matplotlib_stay(results):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.to_png(curves.plot_accuracy(results))
    assert dict(matplotlib.rcParams) == before
    code = (
        "import classimpression.report.plots as p, sys; p.to_png(p.plot_means(__import__('torch').rand(1, 3, 8, "
        "8), ['a'])); import matplotlib.pyplot as plt; assert not plt.get_fignums()"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_columns_of_the_table(results):
    frame = tidy(results)
    wanted = {
        "scenario",
        "profile",
        "protocol",
        "method",
        "seed",
        "class_order",
        "task",
        "accuracy",
        "balanced_accuracy",
        "worst_class_recall",
        "seconds",
        "tier",
        "carried_bytes",
        "carried_images",
    }
    assert wanted <= set(frame.columns) and len(frame) == 2 * 2 * 3
    assert frame[frame.task < 3].forgetting.isna().all() and frame[frame.task == 3].forgetting.notna().all()


def test_rows_are_replaced_by_key(results, tmp_path):
    path = tmp_path / "deep" / "foundation/invented.csv"
    merge_rows(path, tidy(results))
    before = read_rows(path)
    other = [dict(r, profile="quick") for r in results]
    merge_rows(path, tidy(other))
    assert len(read_rows(path)) == 24, "another profile is kept beside"
    merge_rows(path, tidy([example_result("joint", 1, [[1], [1, 1], [1, 1, 1]], "reference", sizes=[3, 1, 2])]))
    after = read_rows(path)
    assert list(after.query("profile == 'standard' and method == 'joint' and seed == 1").accuracy) == [1, 1, 1]
    same = lambda d: d.query("profile == 'standard' and not (method == 'joint' and seed == 1)").reset_index(drop=True)
    pd.testing.assert_frame_equal(same(after), same(before))


def test_fewer_tasks_replace_more(tmp_path):
    path = tmp_path / "t.csv"
    merge_rows(path, tidy([example_result("joint", 0, [[90], [90, 90], [90, 90, 90]])]))
    assert len(merge_rows(path, tidy([example_result("joint", 0, [[80], [80, 80]], sizes=[3, 3])]))) == 2


def test_another_class_order_or_protocol_is_another_result(tmp_path):
    path, one = tmp_path / "t.csv", example_result("joint", 0, [[90], [90, 90]])
    other = one | dict(scenario=one["scenario"] | dict(class_order=[3, 2, 1, 0]))
    merge_rows(path, tidy([one]))
    assert (
        len(merge_rows(path, tidy([other]))) == 4
        and len(merge_rows(path, tidy([one | dict(protocol="pool=test")]))) == 6
    )


def test_foreign_and_broken_files_stay(results, tmp_path):
    path = tmp_path / "t.csv"
    for content in (b"a,b\n1,2\n", b"", b"\x00\xff\x00"):
        path.write_bytes(content)
        with pytest.raises(StateError):
            merge_rows(path, tidy(results))
        assert path.read_bytes() == content
    (tmp_path / "t.json").write_text("[")
    with pytest.raises(StateError):
        merge_results(tmp_path / "t.json", results)


def test_results_file_draws_the_same_figures(results, tmp_path):
    stored = merge_results(tmp_path / "t.json", results)
    assert len(stored) == 4 and merge_results(tmp_path / "t.json", results[:1]) == stored
    assert plots.to_png(panels.plot_confusion(stored), dpi=40) == plots.to_png(panels.plot_confusion(results), dpi=40)


FIGURES = Path(__file__).parent.parent / "figures"


@pytest.mark.skipif(not FIGURES.exists(), reason="the results are not beside the tests")
def test_every_stored_run_can_be_chosen_in_the_browser():
    from classimpression.report.explorers import choose_results, load_results, repeat_name

    found = load_results(FIGURES)
    assert next(iter(found)).startswith("main_table/") and "losses/blood_parts_once" in found
    for name, runs in found.items():
        chosen = choose_results(runs, sorted({r["method"] for r in runs}), sorted({repeat_name(r) for r in runs}))
        assert len(chosen) == len(runs), name
        assert curves.by_method(chosen), f"{name}: runs are read as results are"


def test_recalls_of_several_runs_show_their_range():
    runs = [example_result("slda", s, [[90.0], [p, p]]) for s, p in ((0, 0.0), (1, 100.0))]
    for some, said in ((runs, "mean and range of repeats"), (runs[:1], "95 % interval")):
        ax = panels.plot_recalls(some).axes[0]
        assert said in ax.get_xlabel()
    ends = [line.get_segments()[0][:, 0] for line in panels.plot_recalls(runs).axes[0].collections]
    assert any(abs(np.ptp(e) - 100) < 2 for e in ends), "one run knows a class, the other does not"
