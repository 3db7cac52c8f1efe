"""What a run of `flatstore evolve` was begun with, kept in its folder, so that `--resume` need not be told again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flatstore.cli.task import Settings
from flatstore.files import save_text

_NAME = "command.json"
_TEXTS, _NUMBERS = ("task", "algo"), tuple(Settings.__dataclass_fields__)


def remember(folder: Path, task: str, algo: str, settings: Settings) -> None:
    """Write what a run is begun with into its folder."""
    save_text(folder / _NAME, json.dumps({"task": task, "algo": algo} | vars(settings), indent=1) + "\n")


def recall(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The task, the algorithm and the settings of the run in a folder, by name.

    `given` is what the user asks for, None for what is not said. A run on a cluster may go on on another one, and its
    address is always the user's. Raises `ValueError` without it, for a folder without a run, and if anything else is
    asked for than what the run was begun with.
    """
    try:
        found: Any = json.loads((folder / _NAME).read_bytes())
        kept = {name: found[name] for name in (*_TEXTS, *_NUMBERS)}
        kinds = dict.fromkeys(_TEXTS, str) | {"workers": int | str}
        if not all(isinstance(kept[name], kinds.get(name, int)) for name in kept):
            raise TypeError(f"got {kept}")
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        fix = "take a copy of the run, or begin by another --out" if has_run(folder) else "leave --resume out to begin"
        raise ValueError(
            f"expected --out with a run to go on with, got {str(folder)!r} ({error}); fix: {fix}"
        ) from error
    if isinstance(kept["workers"], str):
        if isinstance(given["workers"], str):
            kept["workers"] = given["workers"]
        elif given["workers"] is None and kept["workers"].partition(":")[2]:
            # A folder from elsewhere does not say whose cluster to trust.
            raise ValueError(
                f"expected --workers for the run in {str(folder)!r}, which was on a cluster, got none; "
                f"fix: --workers {kept['workers']}, if you trust those who are there, or --workers ray"
            )
    others = [name for name in kept if given[name] not in (None, kept[name])]
    if others:
        got = ", ".join(f"--{name} {given[name]} (it has {kept[name]})" for name in others)
        raise ValueError(
            f"expected what the run in {str(folder)!r} was begun with, got {got}; "
            "fix: leave these out, or begin another run by another --out"
        )
    return kept


def has_run(folder: Path) -> bool:
    """Whether a run was begun in a folder."""
    return (folder / _NAME).exists() or (folder / "settings.json").exists()
