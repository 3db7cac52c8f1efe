"""Stores and populations as files, in the safetensors format."""

from flatstore.files.contents import layout_of as layout_of
from flatstore.files.contents import metadata_of as metadata_of
from flatstore.files.creating import create as create
from flatstore.files.half_way import MAGIC as MAGIC
from flatstore.files.half_way import NOT_BEGUN as NOT_BEGUN
from flatstore.files.half_way import OVER as OVER
from flatstore.files.half_way import UNDER_WAY as UNDER_WAY
from flatstore.files.half_way import alone_in as alone_in
from flatstore.files.half_way import half_way_error as half_way_error
from flatstore.files.half_way import log_of as log_of
from flatstore.files.half_way import release as release
from flatstore.files.loading import load as load
from flatstore.files.mapping import WrittenFile as WrittenFile
from flatstore.files.mapping import flush as flush
from flatstore.files.mapping import open as open
from flatstore.files.mapping import open_half_way as open_half_way
from flatstore.files.mapping import written_file as written_file
from flatstore.files.replacing import Writer as Writer
from flatstore.files.replacing import flush_folder as flush_folder
from flatstore.files.replacing import sweep as sweep
from flatstore.files.saving import save as save
from flatstore.files.texts import save_text as save_text
