"""Other libraries' savers and loaders, both ways: those of safetensors, huggingface_hub and transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy
import safetensors.torch
import torch
from huggingface_hub import load_state_dict_from_file, save_torch_model
from safetensors import safe_open

import flatstore as fs
from flatstore.files import metadata_of
from tests.example_trees import bits, same_bits

DTYPES = ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"]
NAMES = {name: bits((3, 4), name, i) for i, name in enumerate(DTYPES)} | {
    "scalar": bits((), "f4", 20),
    "empty": np.zeros((0, 3), "f4"),
    "strided": bits((4, 6), "f4", 21)[:, ::2],
    "permuted": bits((2, 3, 4), "f4", 22).transpose(2, 0, 1),
}


def test_numpys_loader_reads_all_that_is_saved_and_its_saver_is_loaded(tmp_path):
    fs.save(tmp_path / "ours", fs.Store.from_tree(NAMES))
    theirs = safetensors.numpy.load_file(tmp_path / "ours")
    assert theirs.keys() == NAMES.keys() and all(same_bits(theirs[name], NAMES[name]) for name in NAMES)
    plain = {name: np.ascontiguousarray(array) for name, array in NAMES.items()}
    plain["scalar"] = NAMES["scalar"]
    safetensors.numpy.save_file(plain, tmp_path / "theirs", metadata={"format": "np"})
    for read in (fs.load, fs.open):
        ours = read(tmp_path / "theirs")
        assert all(same_bits(ours[name], NAMES[name]) for name in NAMES)
    fs.save(tmp_path / "again", fs.load(tmp_path / "theirs"), metadata=metadata_of(tmp_path / "theirs"))
    with safe_open(tmp_path / "again", "np") as file:
        assert file.metadata()["format"] == "np"


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float32"])
def test_torchs_loader_and_saver(tmp_path, name):
    values = bits((5, 3), name, 3)
    fs.save(tmp_path / "ours", fs.Store.from_tree({"w": values}))
    theirs = safetensors.torch.load_file(tmp_path / "ours")["w"]
    assert theirs.view(torch.uint8).numpy().tobytes() == values.tobytes()
    safetensors.torch.save_file({"w": theirs, "v": torch.ones(3)}, tmp_path / "theirs", metadata={"format": "pt"})
    for read in (fs.load, fs.open):
        ours = read(tmp_path / "theirs")
        assert same_bits(ours["w"], values) and ours["v"].sum() == 3


def test_flaxs_loader_and_saver(tmp_path):
    values = {"w": bits((5, 3), "f4", 3), "h": bits((7,), "bfloat16", 4)}
    fs.save(tmp_path / "ours", fs.Store.from_tree(values))
    theirs = safetensors.flax.load_file(tmp_path / "ours")
    assert all(same_bits(np.asarray(theirs[name]), values[name]) for name in values)
    safetensors.flax.save_file({name: jnp.asarray(x) for name, x in values.items()}, tmp_path / "theirs")
    for read in (fs.load, fs.open):
        assert all(same_bits(read(tmp_path / "theirs")[name], values[name]) for name in values)


def test_the_hubs_saver_and_loader_with_tied_weights(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    save_torch_model(model, tmp_path)
    ours = fs.load(tmp_path / "model.safetensors")
    assert same_bits(ours["0.weight"], model[0].weight.detach().numpy()) and set(ours) == {"0.weight", "0.bias"}
    assert metadata_of(tmp_path / "model.safetensors")["format"] == "pt"
    fs.save(tmp_path / "a.safetensors", fs.adopt(model))
    theirs = load_state_dict_from_file(tmp_path / "a.safetensors")
    assert torch.equal(theirs["0.weight"], model[0].weight) and set(theirs) == {"0.weight", "0.bias"}
    assert fs.load(tmp_path / "a.safetensors").layout.leaf("1.weight").tied == "0.weight"


def test_transformers_loads_what_is_saved_and_saves_what_is_loaded_whole_and_in_parts(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for options in ({}, {"max_shard_size": "30KB"}):
        folder = tmp_path / f"theirs{len(options)}"
        model.save_pretrained(folder, **options)
        index = folder / "model.safetensors.index.json"
        assert index.exists() == bool(options)
        ours = fs.load(index if options else folder / "model.safetensors")
        assert all(same_bits(ours[name], model.state_dict()[name].numpy()) for name in ours)
    (tmp_path / "ours").mkdir()
    config.save_pretrained(tmp_path / "ours")
    fs.save(tmp_path / "ours" / "model.safetensors", fs.adopt(model))
    again = LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(again.state_dict()[name], x) for name, x in model.state_dict().items())
