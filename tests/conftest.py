"""Settings of all tests: Hypothesis draws the same examples each time, JAX is as it comes."""

import gc
import os
import shutil
import signal
import sys
import tempfile

import jax
import pytest
from hypothesis import HealthCheck, settings

import flatstore as fs
from tests.example_trees import tree

ALL = os.environ.get("FLATSTORE_TESTS") == "all"
"""Whether the long tests run too, and Hypothesis draws four times as many examples."""

settings.register_profile(
    "flatstore",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100 if ALL else 25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("flatstore")


def pytest_configure(config: pytest.Config) -> None:
    """JAX has its 64-bit types off, as it starts; machine code is kept from run to run; Ctrl-C does something."""
    if getattr(config, "cache", None) is not None:
        kernels = config.cache.mkdir("kernels")
        kernels.chmod(0o700)  # machine code is not kept where others may write
        os.environ.setdefault("FLATSTORE_CACHE_DIR", str(kernels))
    if os.path.isdir("/dev/shm"):  # of its own, where tests that run beside it do not sweep
        shared = os.environ["FLATSTORE_SHARED_DIR"] = tempfile.mkdtemp(dir="/dev/shm", prefix="flatstore-tests-")
        config.add_cleanup(lambda: shutil.rmtree(shared, ignore_errors=True))
    jax.config.update("jax_enable_x64", False)
    if not os.path.exists("/dev/nvidiactl"):  # without a card kernels are interpreted
        os.environ.setdefault("TRITON_INTERPRET", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell: there is no Ctrl-C to test
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Says which tests run: pytest-xdist does not count those that its workers leave out."""
    return "tests: all" if ALL else "tests: all but the longest, which FLATSTORE_TESTS=all adds"


def is_left_out(item: pytest.Item) -> bool:
    """Whether a test is long, and not the one of its parameters that runs all the same: `long(but="float32")`."""
    mark = item.get_closest_marker("long")
    return mark is not None and not ("but" in mark.kwargs and mark.kwargs["but"] in item.name.partition("[")[2])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long tests, unless all are asked for."""
    if not ALL:
        config.hook.pytest_deselected(items=[item for item in items if is_left_out(item)])
        items[:] = [item for item in items if not is_left_out(item)]


def pytest_collection_finish() -> None:
    """Spare the garbage collector, which lends and tests call, what was imported, which makes it slow."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def store() -> fs.Store:
    """A store of the small tree, all threes."""
    return fs.Store.from_tree(tree(3))


@pytest.fixture
def cut(monkeypatch):
    """A call that sets the sizes of the blocks and tasks in which `flatstore.es` goes over parameters."""

    def set_sizes(**sizes):
        modules = [module for name, module in sys.modules.items() if name.startswith("flatstore.es.")]
        for name, value in {"LEAST": 1, "PARTS": 1, **sizes}.items():
            having = [module for module in modules if hasattr(module, name)]
            assert having, f"no file of flatstore.es has {name}"
            for module in having:
                monkeypatch.setattr(module, name, value)

    return set_sizes
