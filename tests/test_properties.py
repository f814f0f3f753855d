"Properties that hold for whatever hypothesis invents: numbers to bytes, manifests, patients, labels, series."

import string
import unicodedata

import numpy as np
import pandas as pd
import pytest
from classimpression.core.errors import ClassImpressionError, DataError
from classimpression.data import as_bytes, as_labels, mean_of, pieces
from classimpression.echo.manifest import person, read_manifest, split_by_patient
from classimpression.echo.phantom import VIEWS
from classimpression.echo.readers import Limits, read_series

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as arrays  # noqa: E402

quick = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORD = st.text(string.ascii_letters + string.digits + "äß;,'\t -_.", min_size=1, max_size=12)


@quick
@given(st.integers(8, 16), st.data())
def test_bytes_keep_the_order_of_brightness(bits, data):
    "Darker numbers never become brighter bytes; black is 0, white is 255; shifted to other depths they are the same."
    x = data.draw(arrays.arrays(np.uint16, 12, elements=st.integers(0, 2**bits - 1)))
    y = as_bytes(x, bits)
    assert (np.diff(y[np.argsort(x, kind="stable")].astype(int)) >= 0).all()
    assert (y[x == 0] == 0).all() and (y[x == 2**bits - 1] == 255).all()
    assert np.array_equal(as_bytes(x.astype(np.int64) << (16 - bits), 16), y)


@quick
@given(arrays.arrays(st.sampled_from([np.uint8, np.uint16, np.int32, np.float32, np.float64]), st.integers(1, 9)))
def test_numbers_are_bytes_or_refused(x):
    try:
        assert as_bytes(x).dtype == np.uint8
    except DataError as e:
        assert str(e)


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 200))
def test_pieces_are_all_rows_once(shape, most):
    rows = np.arange(shape[0])
    assert np.array_equal(np.concatenate([rows[p] for p in pieces(shape, most)]), rows)


@quick
@given(st.integers(1, 30), st.integers(8, 300))
def test_a_mean_does_not_depend_on_its_pieces(n, most):
    import torch

    x = torch.arange(n * 3, dtype=torch.uint8).view(n, 3)
    assert torch.allclose(mean_of(x, torch.ones(n, dtype=torch.bool), most), x.double().mean(0) / 255, atol=1e-7)


@quick
@given(st.lists(st.tuples(WORD, st.sampled_from(VIEWS), WORD), min_size=1, max_size=5), st.sampled_from(",;\t|"))
def test_a_written_table_is_read_as_it_was(tmp_path, rows, separator):
    "Whatever is in the fields, if a table is written by the rules it is read as it was, or a row is named."
    f = pd.DataFrame(rows, columns=["path", "view", "patient"])
    f.to_csv(tmp_path / "m.csv", index=False, sep=separator)
    try:
        back = read_manifest(tmp_path / "m.csv")
    except DataError as e:
        assert "row" in str(e)
        return
    assert back.path.tolist() == f.path.tolist() and back.view.tolist() == f.view.tolist()
    assert [person(p) for p in back.patient] == [person(p) for p in f.patient]


@quick
@given(st.text(max_size=20))
def test_spelling_does_not_make_another_person(name):
    for other in (f" {name} ", unicodedata.normalize("NFD", name), unicodedata.normalize("NFC", name)):
        assert person(other) == person(name)
    assert person(person(name)) == person(name)


@quick
@given(st.binary(max_size=300), st.sampled_from([".csv", ".parquet"]))
def test_bytes_are_a_manifest_or_refused(tmp_path, data, ending):
    (tmp_path / f"m{ending}").write_bytes(data)
    with pytest.raises(ClassImpressionError):
        read_manifest(tmp_path / f"m{ending}")


@quick
@given(st.binary(max_size=400), st.sampled_from([".dcm", ".npy", ".nii", ".gif", ".mat", ".avi", ""]))
def test_bytes_are_a_series_or_refused(tmp_path, data, ending):
    "Any bytes: an error of ours that does not tell the name of the file."
    p = tmp_path / f"Doe-Jane{ending}"
    p.write_bytes(data)
    with pytest.raises(ClassImpressionError) as e:
        read_series(p, Limits(min_frames=1))
    assert "Doe" not in str(e.value) and str(tmp_path) not in str(e.value)


@quick
@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.uint16, np.float32]),
        st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
        elements=dict(min_value=0, max_value=1),
    )
)
def test_an_array_is_read_as_the_rule_says(tmp_path, x):
    np.save(tmp_path / "a.npy", x)
    try:
        want = as_bytes(x)
    except DataError as e:
        with pytest.raises(DataError) as again:
            read_series(tmp_path / "a.npy", Limits(min_frames=1))
        assert str(again.value) == str(e)
        return
    assert np.array_equal(read_series(tmp_path / "a.npy", Limits(min_frames=1)), want)


@quick
@given(st.lists(st.integers(-2, 5), min_size=1, max_size=8), st.integers(1, 5), st.booleans())
def test_labels_are_kept_or_refused(y, k, column):
    a = np.array(y)[:, None] if column else np.array(y)
    if min(y) < 0 or max(y) >= k:
        with pytest.raises(DataError, match="outside"):
            as_labels(a, k)
    else:
        assert as_labels(a, k).tolist() == y


@quick
@given(st.lists(st.integers(0, 30), min_size=5, max_size=60), st.integers(0, 3))
def test_no_patient_is_in_two_splits(who, seed):
    names = [str(w) for w in who]
    try:
        drawn = split_by_patient(names, seed)
    except DataError as e:
        assert "too few" in str(e) and len(set(names)) < 5
        return
    of = {n: {s for m, s in zip(names, drawn) if m == n} for n in names}
    assert all(len(s) == 1 for s in of.values()) and set(drawn) == {"train", "val", "test"}
