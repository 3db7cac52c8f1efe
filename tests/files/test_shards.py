"""Models in several files, as huggingface_hub and transformers write them."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy
import torch
from huggingface_hub import save_torch_state_dict

import flatstore as fs
from tests.example_trees import same_bits, says

W = {f"layers.{i}.w": np.full((64, 64), i, "f4") for i in range(6)}
INDEX = "model.safetensors.index.json"


def sharded(folder):
    save_torch_state_dict({name: torch.from_numpy(w) for name, w in W.items()}, folder, max_shard_size="40KB")
    return folder / INDEX


def test_the_files_of_an_index_are_loaded_as_one_model(tmp_path):
    path = sharded(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    store = fs.load(path)
    assert sorted(store) == sorted(W) and all(same_bits(store[name], W[name]) for name in W)
    part = fs.load(path, only="layers.1*", rename={"layers.1.w": "w"}, like={"w": np.zeros((64, 64), "f4")})
    assert part["w"].flat[0] == 1


WRONG = {
    "no JSON": ("nonsense", "byte 0: expected '{'"),
    "no map": ("{}", "expected a 'weight_map', got none"),
    "an empty map": ('{"weight_map": {}}', "expected files with tensors, got none"),
    "two maps": ('{"weight_map": {}, "weight_map": {}}', "expected 'weight_map' once"),
    "a list": ('{"weight_map": []}', "expected '{', got '[]}'"),
    "numbers": ('{"weight_map": {"a": 1}}', "expected '\"', got '1}}'"),
    "another folder": ('{"weight_map": {"a": "../x"}}', "'a': expected a file beside the index, got '../x'"),
    "a path from the root": ('{"weight_map": {"a": "/etc/passwd"}}', "expected a file beside the index"),
    "the folder": ('{"weight_map": {"a": ".."}}', "expected a file beside the index"),
    "nothing": ('{"weight_map": {"a": ""}}', "expected a file beside the index"),
    "a null byte": ('{"weight_map": {"a": "a\\u0000"}}', "expected a file beside the index"),
    "too deep": ('{"metadata": ' + "[" * 200 + "]" * 200 + "}", "values at most 126 deep"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_index_that_is_none_is_an_error_that_names_it(tmp_path, kind):
    text, words = WRONG[kind]
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError) as caught:
        fs.load(tmp_path / INDEX)
    says(caught, "expected the index of a model, got", repr(str(tmp_path / INDEX)), words)


def test_an_index_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / INDEX)
    with pytest.raises(ValueError, match="expected the index of a model, got .*; fix: "):
        fs.load(tmp_path / INDEX)


def test_nothing_is_saved_by_the_name_of_an_index_which_could_not_be_loaded(tmp_path):
    path, store = sharded(tmp_path), fs.Store.from_tree(W)
    before = path.read_bytes()
    for write in (
        lambda: fs.save(path, store),
        lambda: fs.Population.create(tmp_path / "x.index.json", store.layout, 2),
    ):
        with pytest.raises(ValueError, match="expected the name of one file, got that of an index, .*; fix: "):
            write()
    assert path.read_bytes() == before and not (tmp_path / "x.index.json").exists()


def test_a_tensor_that_its_file_does_not_have_is_an_error_and_so_is_a_file_that_is_not_there(tmp_path):
    path = sharded(tmp_path)
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    path.write_text(json.dumps({"weight_map": {"other": index["weight_map"][name]}}))
    with pytest.raises(ValueError, match="'other': expected it in .*got a file without it; fix: download"):
        fs.load(path)
    (tmp_path / index["weight_map"][name]).unlink()
    with pytest.raises(FileNotFoundError):
        fs.load(path)


def test_a_tensor_that_the_index_does_not_name_is_an_error_too(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(2), "b": np.ones(3)}, tmp_path / "x.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    with pytest.raises(ValueError, match="'b': expected tensors that .* names, got another in .*; fix: "):
        fs.load(tmp_path / INDEX)
