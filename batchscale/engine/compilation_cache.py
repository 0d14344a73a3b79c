"""Compiled programs, kept on disk between processes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import re
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from batchscale.files import cache_folder
from batchscale.records import environment

# Shorter compilations than this are hardly worth a file.
_LEAST_SECONDS = 0.2
_MOST_BYTES = 2 * 2**30  # of all programs, those of other machines and versions too
_SETTLED = 60.0  # seconds after which nobody is still writing a file
_LOOKED = ".looked"


@contextlib.contextmanager
def cached() -> Iterator[None]:
    """Keeps what is compiled inside in the user's cache folder, unless a cache was chosen already.

    A program that was compiled before on the same kind of processor, by the same JAX, is read
    from there. `JAX_ENABLE_COMPILATION_CACHE=false` switches it off, and
    `JAX_COMPILATION_CACHE_DIR` chooses another folder. Where the folder cannot be written, nothing
    is kept.
    """
    with warnings.catch_warnings(), _kept():
        # Another process may be writing what is read: then it is compiled here, too.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        yield


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        yield
        return
    try:
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        tidy(place)
    except OSError:
        yield
        return
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    former = {name: getattr(config, name) for name in names}
    for name, value in zip(names, (str(place), _LEAST_SECONDS), strict=True):
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

    Programs for a CPU are made for its very model and what it can do, of which a virtual machine
    may show a part; and a home folder may be shared by many.

    >>> folder().parent.name
    'compiled'
    """
    about = environment.processor(), jax.__version__, importlib.metadata.version("jaxlib")
    name = hashlib.blake2b(repr((*about, _features())).encode(), digest_size=8).hexdigest()
    return cache_folder() / "compiled" / name


def tidy(place: Path, most: int = _MOST_BYTES) -> None:
    """Removes programs that a killed process has half written, and the least used beyond a size.

    JAX writes them in place, and would leave half of one there for good.

    Args:
      place: of the programs; those beside it count too.
      most: bytes of all of them.

    Raises:
      OSError: nothing can be written there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for number in range(3):
    ...         file = Path(root, "some", f"{number}-cache")
    ...         file.parent.mkdir(exist_ok=True)
    ...         content = zlib.compress(bytes(100))
    ...         _ = file.write_bytes(content[: -1 if number == 0 else None])
    ...         os.utime(file, (1e9 + number, 1e9 + number))
    ...     tidy(file.parent, len(content))
    ...     [path.name for path in file.parent.glob("*-cache")]
    ['2-cache']
    """
    looked = place / _LOOKED
    last = looked.stat().st_mtime if looked.exists() else 0.0
    settled = time.time() - _SETTLED
    looked.touch()
    os.utime(looked, (settled, settled))
    used = []
    for path in place.parent.glob("*/*-cache"):
        with contextlib.suppress(OSError):  # another process tidies too
            about = path.stat()
            new = path.parent == place and last < about.st_mtime < settled
            if new and not _is_whole(path.read_bytes()):
                path.unlink()
            else:
                used.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    total = sum(size for _, size, _ in used)
    for _, size, path in sorted(used):
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total -= size


def _is_whole(content: bytes) -> bool:
    """Whether a file holds all of what was compressed into it."""
    if content[:4] != b"\x28\xb5\x2f\xfd":
        with contextlib.suppress(zlib.error):
            stream = zlib.decompressobj()
            stream.decompress(content)
            return stream.eof
        return False
    for module in ("compression.zstd", "zstandard"):  # whichever JAX has
        with contextlib.suppress(ImportError):
            try:
                importlib.import_module(module).decompress(content)
            except Exception:  # each has errors of its own
                return False
    return True


def _features() -> str:
    """What the processor can do, as far as the operating system tells."""
    with contextlib.suppress(OSError):
        found = re.search(
            r"^(?:flags|Features)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
        return " ".join(sorted(found[1].split())) if found else ""
    return ""
