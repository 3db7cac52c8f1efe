"""Compiles the kernels for a card, which is not needed for it, and prints what their machine code is made of.

python -m tests.kernels.triton.compiled_for_a_card [NAME]
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flatstore import Normal, Rademacher
from flatstore.kernels.triton import generation, logged_moves, moves, optimisers
from flatstore.kernels.triton.storage import KINDS
from flatstore.noise import SPARSE

POINTERS = {
    "programs": "*i32",
    "done": "*u8",
    "settings": "*fp64",
    "signs": "*fp64",
    "weights": "*i32",
    "of_mother": "*u8",
    "since": "i32",
    "largest": "i32",
    "room": "i32",
}
"""The types of arguments that are not pointers to int64."""

NOISES = {"normal": {"kind": Normal.kind, "width": 16}, "signs": {"kind": Rademacher.kind, "width": 1}}
TILE = {"tile": 1024, "whole": True, "aligned": True}
"""A tile, and that nothing is at its edges; one that is not whole has other code."""
PLAIN = {"cross": 0, "points": 0, "mutate": 0, "kind": 0, "width": 16, "outside": 0}
GENERATIONS = {
    "either, noise": {"cross": 1, "mutate": 1},
    "points, signs, clipped": {"cross": 2, "points": 3, "mutate": 1, "kind": 1, "width": 1, "outside": 1},
    "between, some noise, reflected": {"cross": 3, "mutate": 2, "kind": SPARSE, "outside": 2},
    "a unit, some new": {"cross": 4, "mutate": 3, "kind": SPARSE},
}


def variants():
    """Names, functions and constants: all that a dtype or a way to move changes in the code."""
    for dtype, number in KINDS.items():
        for noise, constants in NOISES.items() if dtype == "float32" else [("normal", NOISES["normal"])]:
            own = constants | {"dtype": number}
            for how in (0, 1, 2) if dtype == "float32" else (0, 1) if dtype == "float64" else (0,):
                yield f"perturb {dtype} {noise} {how}", moves.perturb, own | {"how": how}
                yield f"update {dtype} {noise} {how}", moves.update, own | {"how": how, "gridded": how > 0}
            yield f"sample {dtype} {noise}", moves.sample, own
            yield f"sample {dtype} {noise}, edges", moves.sample, own | {"whole": False}
        if dtype in ("float16", "bfloat16"):
            yield f"check a log {dtype}", logged_moves.check, {}
            yield f"add {dtype} with a log", logged_moves.add, NOISES["normal"] | {"dtype": number}
            yield f"take back {dtype} by a log", logged_moves.take_back, NOISES["normal"] | {"dtype": number}
        for rule in (optimisers.ADAM, optimisers.MOMENTUM):
            yield f"a step of rule {rule} {dtype}", optimisers.step, {"rule": rule, "dtype": number}
        for name, own in GENERATIONS.items():
            yield f"replace {dtype} {name}", generation.replace, PLAIN | own | {"dtype": number}


def machine_code(function, constants):
    """The names of the instructions for a card of compute capability 9.0."""
    names = function.arg_names
    constants = {name: value for name, value in TILE.items() if name in names} | constants
    signature = {name: "constexpr" if name in constants else POINTERS.get(name, "*i64") for name in names}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
        listing = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_.]+)", listing, re.M)


if __name__ == "__main__":
    assert "TRITON_INTERPRET" not in os.environ
    for name, function, constants in variants():
        if all(word in name for word in sys.argv[1:]):
            code = [word for word in machine_code(function, constants) if word != "NOP"]
            fused = sum(word.startswith(("FFMA", "DFMA")) for word in code)
            print(f"{name}: {len(code) / 8:.0f} instructions for a parameter, {fused} fused")
