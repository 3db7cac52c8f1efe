"""Stores as files, in the safetensors format."""

from flatstore.files.safetensors import layout_of as layout_of
from flatstore.files.safetensors import load as load
from flatstore.files.safetensors import metadata_of as metadata_of
from flatstore.files.safetensors import save as save
