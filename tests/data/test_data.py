"""Loading data, and making inputs up from what the graph says about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.data.interface import TensorSpec, check_feeds, inputs_of, outputs_of
from graphopt.data.load import samples
from graphopt.data.synthesize import feeds_for, integer_range, size_candidates
from graphopt.errors import DataError, UnknownNameError
from graphopt.testing import model_from_text

SPECS = (TensorSpec("x", "float", ("n", 3)), TensorSpec("ids", "int64", ("n",)))


def feeds(count: int = 2) -> dict[str, Any]:
    return {"x": np.ones((count, 3), np.float32), "ids": np.arange(count)}


def test_unknown_sizes_are_spelled_in_one_way() -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[n,3] x) => (float[n,3] y) { y = Relu(x) }'
    model = model_from_text(text)
    model.graph.inputs[0].shape = ir.Shape([-1, None, "None", "?", "n", 3])
    model.graph.outputs[0].shape = ir.Shape(["unk__0", "n"])
    assert [str(spec) for spec in inputs_of(model)] == ["x: float[?,?,?,?,n,3]"]
    # The output's first dimension was named by shape inference, not by anyone who knows what it is.
    assert [str(spec) for spec in outputs_of(model)] == ["y: float[?,n]"]
    model.graph.inputs[0].shape = ir.Shape(["unk__0", "n"])
    assert [str(spec) for spec in outputs_of(model)] == ["y: float[unk__0,n]"]


@pytest.mark.parametrize(
    ("stated", "first"),
    [
        ("[320, 256]", (320, 256)),
        ("640", (640, 640)),
        ("[a]", (224, 224)),
        ("[1, 2, 3]", (224, 224)),
        ("", (224, 224)),
    ],
)
def test_sizes_that_the_metadata_state_come_first(stated: str, first: tuple[int, int]) -> None:
    model = model_from_text("g (float[n,3,h,w] x) => (float[n,3,h,w] y) { y = Identity(x) }")
    model.metadata_props["imgsz"] = stated
    sizes = next(size_candidates(model))
    assert (sizes["n"], sizes["h"], sizes["w"]) == (1, *first)


def test_made_up_floats_have_a_grain() -> None:
    text = "g (float[2,3,40,16] x, float[5] v) => (float[2,3,40,16] y) { y = Identity(x) }"
    made = feeds_for(model_from_text(text), {}, seed=0, grain=8)
    x = made["x"]
    # 40 holds several patches of eight, 16 does not.
    assert x.shape == (2, 3, 40, 16) and made["v"].shape == (5,)
    assert (x.reshape(2, 3, 5, 8, 16) == x[:, :, ::8].reshape(2, 3, 5, 1, 16)).all()
    assert np.unique(x).size == x.size // 8
    assert np.unique(feeds_for(model_from_text(text), {}, seed=0)["x"]).size == x.size


def test_npz_is_one_sample_or_many(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", **feeds())
    np.savez(tmp_path / "many.npz", **{name: np.stack([array] * 5) for name, array in feeds().items()})
    assert len(list(samples(tmp_path / "one.npz", SPECS))) == 1
    assert len(list(samples(tmp_path / "many.npz", SPECS))) == 5
    assert len(list(samples(tmp_path, SPECS))) == 6


def test_labels_beside_the_inputs_are_passed_over(tmp_path: Path) -> None:
    stacked = {name: np.stack([array] * 5) for name, array in feeds().items()}
    np.savez(tmp_path / "many.npz", **stacked, label=np.arange(5))
    found = list(samples(tmp_path / "many.npz", SPECS))
    assert len(found) == 5 and all(set(sample) == set(feeds()) for sample in found)
    stacked["idx"] = stacked.pop("ids")
    with pytest.raises(UnknownNameError, match="did you mean 'ids'"):
        list(samples(stacked, SPECS))


def test_folders_of_npy(tmp_path: Path) -> None:
    for name, array in feeds().items():
        np.save(tmp_path / f"{name}.npy", array)
    (only,) = samples(tmp_path, SPECS)
    assert only["ids"].tolist() == [0, 1]
    inner = tmp_path / "set"
    for index in range(3):
        (inner / f"s{index}").mkdir(parents=True)
        for name, array in feeds(index + 1).items():
            np.save(inner / f"s{index}" / f"{name}.npy", array)
    assert [len(sample["x"]) for sample in samples(inner, SPECS)] == [1, 2, 3]


def test_python_iterables() -> None:
    assert len(list(samples([feeds(), feeds(4)], SPECS))) == 2


def test_arrays_in_the_order_of_the_inputs(tmp_path: Path) -> None:
    """As a DataLoader gives them, with labels behind them; where there is one input, an array is a sample."""
    both = feeds()
    whole, *rows = samples([(both["x"], both["ids"]), [both["x"], both["ids"], np.arange(2)]], SPECS)
    assert all(np.array_equal(whole[name], both[name]) for name in both)
    # Labels have a row for each: rows are samples.
    assert [given["ids"].tolist() for given in rows] == [[0], [1]]
    alone = SPECS[:1]
    for source in (both["x"], [both["x"]], [(both["x"],)]):
        assert [np.array_equal(given["x"], both["x"]) for given in samples(source, alone)] == [True]
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", both["x"])
    assert len(list(samples(tmp_path, alone))) == 2 and len(list(samples(tmp_path / "a.npy", alone))) == 1
    for wrong, message in (
        ([(both["x"],)], "holds 1 arrays, and the model has 2"),
        (5, "int"),
        (["x"], "is a str"),
    ):
        with pytest.raises(DataError, match=message):
            list(samples(wrong, SPECS))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.ones((2, 3), np.float64)}, DataError, "type float64, but the model expects float32"),
        ({"x": np.ones((2, 4), np.float32)}, DataError, "dimension 1 is 4, not 3"),
        ({"x": np.ones((2, 3, 1, 1), np.float32)}, DataError, "give it 2 dimensions"),
        ({"ids": np.arange(5)}, DataError, "dimension 'n' is 2 in input 'x' but 5 in 'ids'"),
    ],
)
def test_data_that_do_not_fit(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(samples({**feeds(), **change}, SPECS))


def test_missing_inputs_files_and_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no array for input 'ids'"):
        check_feeds({"x": feeds()["x"]}, SPECS)
    with pytest.raises(DataError, match="no data at"):
        list(samples(tmp_path / "nothing.npz", SPECS))
    with pytest.raises(DataError, match="no sample"):
        list(samples([], SPECS))
    with pytest.raises(DataError, match="holds no"):
        list(samples(tmp_path, SPECS))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match="cannot read"):
        list(samples(tmp_path / "bad.npz", SPECS))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot read"):
        list(samples(tmp_path, SPECS))


EMBEDDING = """
g (int64[batch,seq] ids, int64[batch,seq] mask, int64 rate) => (float[batch,seq,2] y)
<float[5,2] table={0,1,2,3,4,5,6,7,8,9}, int64 wide={16000}, int64 narrow={8000}>
{
  flat = Cast<to=7>(ids)
  e = Gather(table, flat)
  m = Cast<to=1>(mask)
  axis = Constant<value_ints=[-1]>()
  u = Unsqueeze(m, axis)
  a = Equal(rate, wide)
  b = Equal(rate, narrow)
  c = Or(a, b)
  f = Cast<to=1>(c)
  s = Mul(e, u)
  y = Mul(s, f)
}
"""


def test_integers_are_read_off_the_graph() -> None:
    model = model_from_text(EMBEDDING)
    ids, mask, rate = model.graph.inputs
    assert integer_range(ids).upper == 5
    assert integer_range(mask).upper is None and not integer_range(mask).choices
    assert set(integer_range(rate).choices) == {8000, 16000}
    made = feeds_for(model, {"batch": 3, "seq": 7}, seed=0, edge=True)
    assert made["ids"].shape == (3, 7) and made["ids"].max() < 5
    assert set(np.unique(made["mask"])) <= {0, 1} and not made["mask"][0].any() and made["mask"].any()
    assert int(made["rate"]) in (8000, 16000)
    again = feeds_for(model, {"batch": 3, "seq": 7}, seed=0, edge=True)
    assert all(np.array_equal(made[name], again[name]) for name in made)


@pytest.mark.parametrize("compared", [0, 1])
def test_a_mask_that_is_compared_with_one_of_its_values_has_both(compared: int) -> None:
    text = """
    g (float[batch,seq] x, int64[batch,seq] mask) => (float[batch,seq] y) <int64 one = {ONE}, float low = {-1e9}> {
      hidden = Equal(mask, one)
      y = Where(hidden, low, x)
    }"""
    model = model_from_text(text.replace("ONE", str(compared)))
    made = feeds_for(model, {"batch": 3, "seq": 9}, seed=0)["mask"]
    assert set(np.unique(made)) == {0, 1} and made.dtype == np.int64
    assert not feeds_for(model, {"batch": 3, "seq": 9}, seed=0, edge=True)["mask"][0].any()
    assert feeds_for(model, {"batch": 3, "seq": 9}, seed=0, plain=True)["mask"].all()


def test_a_one_hot_code_tells_how_many_classes_there_are() -> None:
    """As jax writes it: the integers compared with 0, 1, 2, ... along a new axis."""
    model = model_from_text(
        """g (int32[n,8] code, int32[n] mode) => (float[n,8,20] y, bool[n,3] z)
        <int64[1] last={2}, int32[1,1,20] classes={0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19},
         int32[1,3] rates={8,16,24}, int64[1] first={1}> {
        u = Unsqueeze(code, last) e = Equal(u, classes) y = Cast<to=1>(e)
        m = Unsqueeze(mode, first) z = Equal(m, rates) }"""
    )
    code, mode = model.graph.inputs
    assert integer_range(code).upper == 20 and not integer_range(code).choices
    assert integer_range(mode).upper is None and set(integer_range(mode).choices) == {8, 16, 24}
    feeds = feeds_for(model, {"n": 40}, 0)
    assert set(feeds["code"].reshape(-1).tolist()) == set(range(20))


def test_several_sizes_of_each_dynamic_dimension() -> None:
    model = model_from_text("g (float[batch,3,h,w] x) => (float[batch,3,h,w] y) { y = Relu(x) }")
    tried = list(size_candidates(model))
    assert all(sizes.keys() == {"batch", "h", "w"} for sizes in tried)
    assert len({sizes["h"] for sizes in tried}) > 3 and len({sizes["batch"] for sizes in tried}) > 1
    assert [str(spec) for spec in inputs_of(model)] == ["x: float[batch,3,h,w]"]
    model.graph.inputs[0].shape = ir.Shape([-1, 3, -1, 8])
    assert next(size_candidates(model)).keys() == {"x[0]", "x[2]"}
    assert feeds_for(model, {"x[0]": 2, "x[2]": 5}, seed=0)["x"].shape == (2, 3, 5, 8)
    static = model_from_text("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    assert list(size_candidates(static)) == [{}]


def test_each_name_gets_a_size_of_its_own() -> None:
    model = model_from_text("g (float[a,s] x, float[b,t] z) => (float[a,s] y) { y = Relu(x) }")
    tried = list(size_candidates(model))
    assert any(sizes["s"] != sizes["t"] and sizes["a"] == sizes["b"] for sizes in tried[:3])
    assert any(len(set(sizes.values())) == 4 for sizes in tried[:3])
    assert all(sizes not in tried[:index] for index, sizes in enumerate(tried))
    assert len([sizes for sizes in tried if sizes["s"] == sizes["t"] and sizes["a"] == sizes["b"]]) > 5
