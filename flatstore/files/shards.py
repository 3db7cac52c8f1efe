"""Models in several files, as huggingface_hub writes them: an index says which file has which tensor.

```
model.safetensors.index.json    {"metadata": {...}, "weight_map": {"w": "model-00001-of-00002.safetensors", ...}}
```
"""

from __future__ import annotations

import os

from flatstore.files.bounded_json import Scanner
from flatstore.files.half_way import not_waiting
from flatstore.files.header import MOST

INDEX = ".index.json"
"""How the name of an index ends."""


def shards_of(path: str) -> dict[str, list[str]]:
    """The names of the tensors in each file that an index names: {path of the file: names}.

    Raises `ValueError` that says what is wrong with the index: other JSON, or files outside of its folder.
    """
    try:
        with open(path, "rb", opener=not_waiting) as file:
            content = file.read(MOST + 1)
        if len(content) > MOST:
            raise ValueError(f"expected at most {MOST:,} bytes, got more")
        files = _weight_map(Scanner(content))
        folder = os.path.dirname(path)
        shards: dict[str, list[str]] = {}
        for name, file in files.items():
            if file in ("", ".", "..") or os.path.basename(file) != file or "\\" in file or "\0" in file:
                raise ValueError(f"{name[:60]!r}: expected a file beside the index, got {file[:60]!r}")
            shards.setdefault(os.path.join(folder, file), []).append(name)
        if not shards:
            raise ValueError("expected files with tensors, got none")
    except ValueError as error:
        raise ValueError(f"expected the index of a model, got {path!r}: {error}; fix: download it again") from error
    return shards


def refuse_name(path: str | os.PathLike[str]) -> None:
    """Raise `ValueError` for a name that says that it is an index: what is saved there could not be loaded."""
    if os.fspath(path).endswith(INDEX):
        raise ValueError(
            f"expected the name of one file, got that of an index, {os.fspath(path)!r}; fix: x.safetensors"
        )


def _weight_map(scan: Scanner) -> dict[str, str]:
    files: dict[str, str] | None = None
    for key in scan.keys():
        if key == "weight_map" and files is None:
            files = {name: scan.string() for name in scan.keys()}
        elif key == "weight_map":
            raise ValueError("expected 'weight_map' once, got it twice")
        else:
            scan.skip(1)
    scan.end()
    if files is None:
        raise ValueError("expected a 'weight_map', got none")
    return files
