"Confidence against accuracy, and recall per class, on numbers small enough to check by hand."

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from classimpression.studies import calibration
from classimpression.core.errors import DataError


def test_bins_weigh_by_their_answers():
    p = np.array([[0.75, 0.25]] * 3 + [[0.15, 0.85]])
    y = np.array([0, 0, 1, 1])
    t = calibration.reliability(p, y)
    assert t.n.tolist() == [3, 1] and t.confidence.round(6).tolist() == [75.0, 85.0]
    assert calibration.calibration_error(p, y) == pytest.approx(0.75 * (75 - 200 / 3) + 0.25 * 15)


def test_certainty_falls_into_the_last_bin():
    assert calibration.reliability(np.eye(2), [0, 0]).bin.tolist() == [9]


@pytest.mark.parametrize("p, y", [(np.ones((2, 2)) / 2, [0]), (np.ones((0, 2)), []), (np.ones(3), [0, 1, 2])])
def test_what_does_not_fit_is_refused(p, y):
    with pytest.raises(DataError, match="N labels are needed"):
        calibration.calibration_error(p, y)


def test_runs_are_asked_about_classes_seen_only(toy):
    data, asked = toy((2, 1)), []
    real = data.test
    data.test = lambda t: asked.append(t) or real(t)

    class First(torch.nn.Module):
        def __init__(self, K):
            super().__init__()
            self.K = K

        def forward(self, x):
            return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), self.K).float() * 50

    run = SimpleNamespace(
        data=dict(method="ncm", seed=0, run_id="r"), carry=lambda t: SimpleNamespace(model=First(2 + t))
    )
    rows, curves = calibration.calibration_rows([run], [data])
    assert asked == [0, 1] and rows.task.tolist() == [1, 2]
    assert rows.balanced_accuracy.tolist() == pytest.approx(
        [50, 33.333], abs=0.01
    ) and rows.confidence_when_wrong.tolist() == pytest.approx([100, 100], abs=0.01)
    assert np.isnan(rows.old_calibration_error[0]) and rows.old_calibration_error[1] == pytest.approx(50, abs=0.01)


def test_recall_of_the_median_run_with_its_range():
    run = lambda a: SimpleNamespace(
        data=dict(
            method="ncm",
            scenario=dict(class_names=["x"]),
            tasks=[dict(confusion=[[a]]), dict(confusion=[[a, 100 - a], [0, 1]])],
        )
    )
    r = calibration.recall_rows([run(a) for a in (90, 10, 60)]).iloc[0]
    assert (r.recall, r.lowest, r.highest, r.runs) == (60, 10, 90, 3) and r.low < 60 < r.high
