"""Past one machine: seeds and fitness travel, and the centre is the same everywhere."""

from flatstore.scale import ray as ray
