"""Runs as folders: settings, snapshots, and a journal of what moved them. The loops of `ga` and `es` go on from one."""

from flatstore.recording.journal_file import entries_of as entries_of
from flatstore.recording.kept_open import KeptOpen as KeptOpen
from flatstore.recording.line_text import as_numbers as as_numbers
from flatstore.recording.line_text import as_texts as as_texts
from flatstore.recording.line_text import read_json as read_json
from flatstore.recording.run_folder import RunFolder as RunFolder
from flatstore.recording.run_folder import RunPath as RunPath
from flatstore.recording.run_folder import run_entries as run_entries
from flatstore.recording.run_folder import settings_of as settings_of
from flatstore.recording.settings import described as described
from flatstore.recording.snapshots import newest_snapshot as newest_snapshot
from flatstore.recording.snapshots import snapshot_note as snapshot_note
from flatstore.recording.snapshots import snapshot_path as snapshot_path
