"""Metrics on numbers that were worked out by hand: unequal tasks, one task, one class per task, and everything that is
refused.
"""

import json
import math

import numpy as np
import pytest
import torch

from classimpression.core.errors import ConfigError, DataError
from classimpression.metrics import accuracy, accuracy_matrix, average_incremental_accuracy, backward_transfer
from classimpression.metrics import balanced_accuracy, class_recalls, confusion_matrix, final_accuracy, forgetting
from classimpression.metrics import summarise, task_accuracies, task_summary, wilson_interval, worst_class_recall

NAN = float("nan")
# After task 3 of the sizes 3+1+2: rows are the truth. Right: 8 of 10, 3 of 5, 0 of 5 | 4 of 20 | 9 of 10, 2 of 2
LAST = [
    [8, 0, 0, 1, 1, 0],
    [0, 3, 2, 0, 0, 0],
    [5, 0, 0, 0, 0, 0],
    [0, 0, 0, 4, 6, 10],
    [0, 0, 0, 0, 9, 1],
    [0, 0, 0, 0, 0, 2],
]
SECOND = [[9, 0, 0, 1], [0, 3, 1, 1], [0, 1, 4, 0], [2, 2, 2, 14]]  # 16 of 20 | 14 of 20
FIRST = [[10, 0, 0], [0, 5, 0], [1, 0, 4]]  # 19 of 20
SIZES = [3, 1, 2]
close = lambda v: pytest.approx(v, rel=1e-12)


# ---- counting


def test_confusion_rows_are_the_truth():
    y, pred = [0, 0, 1, 2, 2, 2], [0, 2, 1, 0, 0, 2]
    want = [[1, 0, 1], [0, 1, 0], [2, 0, 1]]
    for kind in (list, np.array, lambda v: np.array(v, dtype=np.uint8), torch.tensor):
        assert confusion_matrix(kind(y), kind(pred), 3).tolist() == want
    big = confusion_matrix(np.full(300, 19, np.uint8), np.full(300, 18, np.uint8), 20)  # 19 * 20 exceeds a byte
    assert big[19, 18] == 300 == big.sum()


@pytest.mark.parametrize(
    "y, pred, k",
    [
        ([0, 3], [0, 0], 3),
        ([0, 0], [0, 3], 3),
        ([-1], [0], 3),
        ([0, 1], [0], 3),
        ([[0]], [[0]], 3),
        ([0.5], [0], 3),
        ([0], [NAN], 3),
        ([True], [False], 3),
    ],
)
def test_confusion_refuses(y, pred, k):
    with pytest.raises(DataError):
        confusion_matrix(y, pred, k)


def test_confusion_refuses_impossible_sizes():
    for k in (0, 2.5, True):
        with pytest.raises(ConfigError):
            confusion_matrix([0], [0], k)


# ---- one moment


def test_recalls_and_accuracies_of_unequal_classes():
    assert class_recalls(LAST).tolist() == close([80, 60, 0, 20, 90, 100])
    assert accuracy(LAST) == 50.0  # 26 of 52
    assert balanced_accuracy(LAST) == close(350 / 6)
    assert worst_class_recall(LAST) == 0
    assert accuracy([[3]]) == balanced_accuracy([[3]]) == worst_class_recall([[3]]) == 100


@pytest.mark.parametrize(
    "f",
    [
        class_recalls,
        accuracy,
        balanced_accuracy,
        worst_class_recall,
        lambda c: task_accuracies(c, [2]),
        lambda c: task_summary(c, [2]),
    ],
)
def test_a_class_without_test_images_is_refused(f):
    with pytest.raises(DataError, match=r"classes \[1\] have no test image"):
        f([[3, 1], [0, 0]])


@pytest.mark.parametrize("conf", [[[1, 2]], [1, 2], [[1, -1], [0, 1]], [[NAN]], np.zeros((0, 0))])
def test_what_is_no_confusion_matrix_is_refused(conf):
    with pytest.raises(DataError):
        accuracy(conf)


def test_wilson():
    """Textbook values, the closed forms at the ends, and the defining equation (p - q)^2 = z^2 q (1 - q) / n at both
    ends q.
    """
    assert wilson_interval(5, 10) == pytest.approx((23.6593, 76.3407), abs=1e-4)
    assert wilson_interval(81, 263) == pytest.approx((25.5, 36.6), abs=0.06)  # Newcombe (1998)
    z = 1.959963984540054
    assert wilson_interval(80, 80) == close((100 * 80 / (80 + z * z), 100))
    assert wilson_interval(0, 1) == pytest.approx((0, 100 * z * z / (1 + z * z)), rel=1e-12, abs=1e-12)
    for h, n in ((1, 7), (30, 80), (1243, 1250)):
        for q in wilson_interval(h, n, level=0.99):
            q /= 100
            assert abs(h / n - q) == pytest.approx(2.5758293035489004 * math.sqrt(q * (1 - q) / n), rel=1e-9)


def test_wilson_arrays_and_refusals():
    low, high = wilson_interval([5, 80], [10, 80])
    assert low.shape == high.shape == (2,) and (low[0], high[0]) == wilson_interval(5, 10)
    assert all(type(v) is float for v in wilson_interval(5, 10))
    for hits, n in ((1, 0), (3, 2), (-1, 4), (NAN, 4)):
        with pytest.raises(DataError):
            wilson_interval(hits, n)
    for level in (0, 1, 95, NAN):
        with pytest.raises(ConfigError):
            wilson_interval(1, 2, level)


# ---- the accuracy matrix


def test_a_row_counts_images_of_unequal_tasks():
    assert task_accuracies(LAST, SIZES).tolist() == close([55, 20, 1100 / 12])  # 11 of 20, 4 of 20, 11 of 12
    assert task_accuracies(SECOND, SIZES[:2]).tolist() == [80, 70]
    assert task_accuracies(LAST, [1] * 6).tolist() == class_recalls(LAST).tolist()
    assert task_accuracies(LAST, [6]).tolist() == [50]
    assert task_accuracies(LAST, np.array(SIZES)).tolist() == task_accuracies(LAST, tuple(SIZES)).tolist()


@pytest.mark.parametrize("sizes", [[3, 1], [3, 1, 2, 1], [], [6, 0], [7, -1], [3.0, 3.0]])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ConfigError):
        task_accuracies(LAST, sizes)


def test_matrix_is_nan_above_the_diagonal():
    m = accuracy_matrix([[95.0], [80.0, 70.0], [55.0, 20.0, 90.0]])
    assert np.isnan(m[np.triu_indices(3, 1)]).all() and m[2].tolist() == [55, 20, 90]
    for rows in ([], [[1.0], [1.0]], [[1.0, 2.0]], [[1.0], [1.0, 2.0], [1.0, 2.0]]):
        with pytest.raises(DataError):
            accuracy_matrix(rows)


# ---- a sequence

MATRIX = [[95, NAN, NAN, NAN], [97, 60, NAN, NAN], [80, 70, 88, NAN], [70, 75, 40, 99]]


def test_forgetting_and_transfer():
    "Task 1 peaks after task 2 (97), task 2 is best at the end (best before: 70), task 3 was seen once (88)."
    assert forgetting(MATRIX) == close(((97 - 70) + (70 - 75) + (88 - 40)) / 3)
    assert backward_transfer(MATRIX) == close(((70 - 95) + (75 - 60) + (40 - 88)) / 3)


def test_what_stands_above_the_diagonal_does_not_count():
    filled = [[100 if math.isnan(v) else v for v in row] for row in MATRIX]
    assert forgetting(filled) == forgetting(MATRIX) and backward_transfer(filled) == backward_transfer(MATRIX)


def test_one_and_two_tasks():
    assert forgetting([[97]]) == backward_transfer([[97]]) == 0.0
    assert forgetting([[90, NAN], [60, 99]]) == 30 and backward_transfer([[90, NAN], [60, 99]]) == -30
    assert forgetting([[60, NAN], [70, 90]]) == -10


@pytest.mark.parametrize(
    "matrix", [[[1.0, NAN], [NAN, 2.0]], [[NAN]], [[1.0, 2.0]], [1.0], np.zeros((0, 0)), [[1.0, NAN], [math.inf, 1.0]]]
)
def test_matrices_with_gaps_are_refused(matrix):
    for f in (forgetting, backward_transfer):
        with pytest.raises(DataError):
            f(matrix)


def test_final_and_average():
    assert final_accuracy([95.0, 75.0, 50.0]) == 50
    assert average_incremental_accuracy([95.0, 75.0, 49.0]) == 73
    assert final_accuracy([88.0]) == average_incremental_accuracy([88.0]) == 88
    for bad in ([], [NAN], [[1.0]]):
        for f in (final_accuracy, average_incremental_accuracy):
            with pytest.raises(DataError):
                f(bad)


def test_summary_of_unequal_tasks():
    m = summarise([FIRST, SECOND, LAST], SIZES)
    assert m == dict(
        final_accuracy=50.0,
        balanced_accuracy=close(350 / 6),
        worst_class_recall=0.0,
        average_incremental_accuracy=close((95 + 75 + 50) / 3),  # 19 of 20, 30 of 40, 26 of 52
        forgetting=close(((95 - 55) + (70 - 20)) / 2),
        backward_transfer=close(((55 - 95) + (20 - 70)) / 2),
    )
    assert all(type(v) is float for v in m.values()) and json.dumps(m, allow_nan=False)


def test_summary_of_one_task_and_of_one_class_per_task():
    assert summarise([LAST], [6]) == dict(
        final_accuracy=50.0,
        balanced_accuracy=close(350 / 6),
        worst_class_recall=0.0,
        average_incremental_accuracy=50.0,
        forgetting=0.0,
        backward_transfer=0.0,
    )
    m = summarise([[[4]], [[3, 1], [0, 2]], [[1, 0, 3], [0, 1, 1], [0, 0, 5]]], [1, 1, 1])
    assert m["average_incremental_accuracy"] == close((100 + 500 / 6 + 700 / 11) / 3)
    assert m["forgetting"] == close(((100 - 25) + (100 - 50)) / 2) and m["worst_class_recall"] == 25


def test_task_summary_is_plain_json():
    s = task_summary(SECOND, [3, 1])
    assert json.loads(json.dumps(s, allow_nan=False)) == s
    assert (
        s["accuracy"] == 75
        and s["row"] == [80, 70]
        and s["recalls"] == close([90, 60, 80, 70])
        and s["confusion"] == SECOND
    )
    assert all(lo < r < hi for lo, r, hi in zip(s["recall_low"], s["recalls"], s["recall_high"], strict=True))
    assert (s["recall_low"][3], s["recall_high"][3]) == close(wilson_interval(14, 20))


def test_summary_refuses_wrong_numbers_of_matrices():
    for confs, sizes in (([FIRST], SIZES), ([], []), ([FIRST, SECOND, LAST], [3, 2, 1])):
        with pytest.raises((DataError, ConfigError)):
            summarise(confs, sizes)
