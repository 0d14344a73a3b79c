"""Compiled programs, kept on disk between processes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from batchscale.files import cache_folder
from batchscale.records import environment

# Shorter compilations than this are hardly worth a file.
_LEAST_SECONDS = 0.2


@contextlib.contextmanager
def cached() -> Iterator[None]:
    """Keeps what is compiled inside in the user's cache folder, unless a cache was chosen already.

    A program that was compiled before on the same kind of processor, by the same JAX, is read
    from there. `JAX_ENABLE_COMPILATION_CACHE=false` switches it off, and
    `JAX_COMPILATION_CACHE_DIR` chooses another folder.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        yield
        return
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    former = {name: getattr(config, name) for name in names}
    for name, value in zip(names, (str(folder()), _LEAST_SECONDS), strict=True):
        config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks only once whether it has a cache
    try:
        yield
    finally:
        for name, value in former.items():
            config.update(name, value)
        compilation_cache.reset_cache()


def folder() -> Path:
    """Where the compiled programs of this processor and this JAX are kept.

    Programs for a CPU are made for its very model, and a home folder may be shared by many.

    >>> folder().parent.name
    'compiled'
    """
    about = environment.processor(), jax.__version__, importlib.metadata.version("jaxlib")
    name = hashlib.blake2b(repr(about).encode(), digest_size=8).hexdigest()
    return cache_folder() / "compiled" / name
