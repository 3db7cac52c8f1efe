"""Stores on a device in files: the bytes of those on the host, and read leaf by leaf, straight to the device."""

import jax
import numpy as np
import pytest

import flatstore as fs
from flatstore.store import JaxPopulation, JaxStore

DEVICE = jax.devices()[0]


def a_tree():
    rng = np.random.default_rng(0)
    tied = rng.normal(size=(4, 3)).astype("f4")
    return {
        "a": {"bias": rng.normal(size=7).astype("f4"), "kernel": rng.normal(size=(31, 23)).astype("bfloat16")},
        "empty": np.zeros((0, 2), "f4"),
        "n": np.arange(5, dtype="i4"),
        "one": tied,
        "other": tied,
        "scalar": np.float32(3),
    }


@pytest.mark.parametrize("size", [None, 3], ids=["a store", "a population"])
def test_a_file_is_that_of_the_host_and_comes_back_as_it_was(size, tmp_path):
    make, given = (fs.Store, ()) if size is None else (fs.Population, (size,))
    host, there = make.from_tree(a_tree(), *given), make.from_tree(a_tree(), *given, device=DEVICE)
    fs.save(tmp_path / "host.safetensors", host, metadata={"a": "b"})
    fs.save(tmp_path / "there.safetensors", there, metadata={"a": "b"})
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "host.safetensors").read_bytes()
    for how in ({}, {"like": host}, {"like": there}, {"like": host.layout, "verify": False}):
        loaded = fs.load(tmp_path / "there.safetensors", device=DEVICE, **how)
        assert type(loaded) is (JaxStore if size is None else JaxPopulation) and loaded.layout.by_path.keys() == {
            *there
        }
        for path in host.layout.by_path:
            assert np.array(loaded[path]).tobytes() == np.array(host[path]).tobytes(), path
            assert loaded[path].devices() == {DEVICE} and loaded[path].shape == there[path].shape
        assert loaded["one"] is loaded["other"]
    assert isinstance(fs.load(tmp_path / "there.safetensors", like=there), make)


def test_what_is_chosen_and_renamed_is_read_alone(tmp_path):
    fs.save(tmp_path / "a.safetensors", fs.Store.from_tree(a_tree()))
    loaded = fs.load(tmp_path / "a.safetensors", only="a/*", rename={"a/*": "*"}, device=DEVICE)
    assert [*loaded] == ["bias", "kernel"] and np.array(loaded["bias"]).tolist() == a_tree()["a"]["bias"].tolist()


def test_damage_and_other_devices_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    fs.save(path, fs.Store.from_tree({"w": np.arange(64, dtype="f4"), "x": np.zeros(2)}))
    for how, kind, words in (
        ({"device": 3}, TypeError, "expected a device of JAX, got 3; fix"),
        ({"device": DEVICE}, ValueError, "'x': expected a dtype that JAX has, got float64"),
    ):
        with pytest.raises(kind, match=words):
            fs.load(path, **how)
    fs.save(path, fs.Store.from_tree({"w": np.arange(64, dtype="f4")}))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="'w': expected the data that save wrote"):
        fs.load(path, device=DEVICE)
