"""How long a run's folder is open: from the call of a loop until the loop is over, or left, or fails as it begins."""

from __future__ import annotations

from typing import Any

from flatstore.recording.run_folder import RunFolder
from flatstore.threads import Leaving, when_dropped


class KeptOpen:
    """A run in a folder, or in none: then there is nothing to do. As a context it is closed if its block fails."""

    folder: RunFolder | None = None

    def __enter__(self) -> None:
        pass

    __exit__: Leaving = Leaving(idle=True)

    def leave(self, error: BaseException | None) -> None:
        """Let others go on with the run, after an error."""
        if error is not None and self.folder is not None:
            self.folder.close()

    def until_dropped(self) -> Any:
        """What closes the folder as soon as nothing refers to it any more."""
        return None if self.folder is None else when_dropped(self.folder.close)
