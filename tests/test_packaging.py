"""What is installed, what an import costs, and which versions are allowed."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import batchscale as bs

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_that_of_the_package():
    assert bs.__version__ == PROJECT["version"] == importlib.metadata.version("batchscale")


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_it_is_used():
    script = """
        import sys
        import batchscale as bs
        heavy = {"matplotlib", "scipy.stats", "tensorflow_datasets", "tensorflow", "sklearn"}
        assert not {"jax", "pandas"} & set(sys.modules), "jax or pandas"
        bs.Study, bs.Workload, bs.load, bs.SearchSpace, bs.workloads.get
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    code = "\n".join(line.strip() for line in script.splitlines())
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_listed():
    for name in dir(bs):
        if not name.startswith("_"):
            assert getattr(bs, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'studdy'"):
        _ = bs.studdy
    listed = re.findall(r"as ([A-Za-z]\w*)$", (ROOT / "batchscale/__init__.py").read_text(), re.M)
    assert {*listed} | {"records"} == {name for name in bs.__all__ if name != "__version__"}
    found: dict[str, object] = {}
    exec("from batchscale import *", found)
    assert {*found} - {"__builtins__"} == {*bs.__all__} == {n for n in dir(bs) if n in bs.__all__}
    assert len(dir(bs)) == len({*dir(bs)})
    assert not {"Any", "TYPE_CHECKING", "importlib"} & {*dir(bs)}


def test_the_oldest_versions_are_those_that_are_allowed():
    """So that the checks that run with them say something about what users may have."""

    def parts(version):
        return [int(part) for part in version.split(".")]

    allowed = dict(
        re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in PROJECT["dependencies"]
    )
    path = ROOT / ".github/oldest.txt"
    if not path.exists():
        pytest.skip("a source distribution has no workflows")
    lines = path.read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert oldest.keys() == allowed.keys()
    for name, version in allowed.items():
        wanted = parts(version)
        assert parts(oldest[name])[: len(wanted)] == wanted, name
