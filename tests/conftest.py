"""Settings of all tests: Hypothesis draws the same examples each time, JAX is as it comes."""

import os
import signal
import sys

import jax
import pytest
from hypothesis import HealthCheck, settings

import flatstore as fs
from tests.example_trees import tree

SHORT = os.environ.get("FLATSTORE_TESTS") == "short"
"""Whether the long tests are left out, and Hypothesis draws fewer examples."""

settings.register_profile(
    "flatstore",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25 if SHORT else 100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("flatstore")


def pytest_configure(config: pytest.Config) -> None:
    """JAX has its 64-bit types off, as it starts; machine code is kept from run to run; Ctrl-C does something."""
    if getattr(config, "cache", None) is not None:
        os.environ.setdefault("FLATSTORE_CACHE_DIR", str(config.cache.mkdir("kernels")))
    jax.config.update("jax_enable_x64", False)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell: there is no Ctrl-C to test
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out of the short form."""
    if SHORT:
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture
def store() -> fs.Store:
    """A store of the small tree, all threes."""
    return fs.Store.from_tree(tree(3))


@pytest.fixture
def cut(monkeypatch):
    """A call that sets the sizes of the blocks and tasks in which `flatstore.es` goes over parameters."""

    def set_sizes(**sizes):
        for module in [module for name, module in sys.modules.items() if name.startswith("flatstore.es.")]:
            for name, value in {"LEAST": 1, "PARTS": 1, **sizes}.items():
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, value)

    return set_sizes
