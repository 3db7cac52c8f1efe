"""Stores and populations as files, in the safetensors format."""

from flatstore.files.contents import layout_of as layout_of
from flatstore.files.contents import metadata_of as metadata_of
from flatstore.files.loading import load as load
from flatstore.files.mapping import flush as flush
from flatstore.files.mapping import open as open
from flatstore.files.replacing import sweep as sweep
from flatstore.files.saving import save as save
from flatstore.files.texts import save_text as save_text
