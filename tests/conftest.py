"""Two virtual CPU devices and checked shapes for every test; a small workload that many share."""

import atexit
import os
import shutil
import signal
import tempfile

# No promotion of types and ranks by JAX: what is promoted unseen is a wrong number unseen.
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
# Many tests run the same programs: compile each of them once, also in the processes they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="batchscale-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

# A shell's background job is started deaf to Ctrl-C, and so would be what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

import shapes

shapes.check_imports("batchscale", but=["datasets"])

import numpy as np
import pytest
from helpers import perceptron
from hypothesis import settings

import batchscale as bs

# The same examples in every run: a property that fails, fails for everyone.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def same_numbers(request, monkeypatch):
    """A module's RANDOM begins anew with every test: none hangs on those that ran before it."""
    if hasattr(request.module, "RANDOM"):
        monkeypatch.setattr(request.module, "RANDOM", np.random.default_rng(0))


@pytest.fixture
def usual_promotion():
    """JAX's promotion of shapes and types, for what is not ours: the suite runs without it too."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def square() -> bs.Workload:
    """The small network on the square."""
    return perceptron()
