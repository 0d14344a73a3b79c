"""Other people's folders: what loaders make of files that were damaged, moved or forged.

    python -m validation.fuzzing --folders 20000 --seed 0

Small folders of every kind (a study, an interrupted one, a refined, a confirmed and a measured one,
a pilot, an archive of ours and one as the paper published it) are copied, changed by a seeded
mutation and read by every public loader. Counted is what came of it: `refused`, by an error of the
library's own; `same`, every table as it was; `believed`, another table where the change came with
recomputed digests, or where the layout has none; and what must not be: `other`, another table
without a word; `escaped`, an error from inside; `written`, a file that reading has changed;
`unescaped`, a tag of a file in a page.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import batchscale as bs
from batchscale import cli
from batchscale.archive import seals
from batchscale.archive.names import OWN, STUDY
from batchscale.piloting import running
from batchscale.records._index import INDEX, Index
from batchscale.theory import NoisyQuadratic

_PACKAGE = str(Path(bs.__file__).parent)
_OWN = ValueError, FileNotFoundError
TAG = "<script>alert(1)</script>"
BAD = ("other", "escaped", "written", "unescaped")
_PAGES = 25  # of so many folders one is read by the slow ways too: a page, the command line
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 0.5, -0.5, 1e308, 10**40, 2**63, float("nan"), float("inf")),
    *("", "changed", "../../etc/passwd", TAG, "$\\frac{", "\x00", [], {}, [[]], {"a": 1}),
]


def sources(root: Path) -> dict[str, Path]:
    """Makes a small folder of every kind, by training; returns them by kind."""
    model = NoisyQuadratic.power_law(10)
    study = bs.Study(
        workload=model.workload(),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 4.0)),
        batch_sizes=[4, 16, 64, 256],
        goal=bs.Goal("validation/risk", 0.1),
        trials=4,
        max_steps=200,
        evaluation_spacing=0.3,
        stop="budget",
    )
    study.run(root / "study", progress=False)
    archive = bs.load(root / "study").to_archive(root / "archive/noise/quadratic/sgd")
    for kind in ("refined", "confirmed", "measured"):
        shutil.copytree(root / "study", root / kind)
    study.refine(root / "refined", rounds=1, trials=2, progress=False)
    study.confirm(root / "confirmed", settings=2, selection_seeds=1, seeds=2, progress=False)
    study.measure(root / "measured", 0.6, progress=False)
    _interrupt(study, root / "interrupted")
    workload = model.workload()
    options = {"metric": "validation/risk", "minutes": 0.05, "answer_minutes": 0.2}
    bs.pilot(workload, folder=root / "pilot", progress=False, **options)
    shutil.copytree(root / "archive", root / "paper")
    for path in (root / "paper").rglob("*.json"):
        record = json.loads(path.read_text())
        del record["_batchscale"]
        path.write_text(json.dumps(record))
    kinds = ("study", "interrupted", "refined", "confirmed", "measured", "pilot")
    paper = root / "paper" / archive.relative_to(root / "archive")
    return {kind: root / kind for kind in kinds} | {"archive": archive, "paper": paper}


def _interrupt(study: bs.Study, folder: Path) -> None:
    def stop(told: bs.Progress) -> None:
        if told.batch_size == 64 and told.step > 10:
            raise InterruptedError

    with contextlib.suppress(InterruptedError):
        study.run(folder, progress=stop)


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file in a folder, by its name there; the lock is none of them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


class Mutation:
    """Changes of a folder, drawn at random.

    Args:
      folder: to be changed.
      random: draws.
    """

    def __init__(self, folder: Path, random: np.random.Generator) -> None:
        self.folder, self._random = folder, random
        self.forged = False  # whether a change came with recomputed digests, or the layout has none
        self.done: list[str] = []
        self._with_digests = (
            (folder / INDEX).exists()
            or (folder / "pilot.json").exists()
            or any(OWN in path.read_text() for path in folder.rglob(STUDY))
        )

    def change(self) -> None:
        """Makes one change of a file."""
        names = [*files(self.folder)]
        if not names:
            return
        name = names[self._random.integers(len(names))]
        path = self.folder / name
        ways: list[Callable[[Path], object]] = [self._bytes, self._bytes, self._files]
        if name.endswith(".json"):
            ways += 4 * [self._json]
        if name.endswith(".parquet"):
            ways += 4 * [self._table]
        if name.endswith(".csv"):
            ways += 4 * [self._cells]
        way = ways[self._random.integers(len(ways))]
        before = path.read_bytes()
        self.done.append(f"{way.__name__.strip('_')} of {name}: {way(path)}")
        changed = not path.is_file() or path.read_bytes() != before
        if changed and not self._with_digests:
            self.forged = True
        elif changed and path.is_file() and self._random.random() < 0.5:
            self._forge(path)

    def _one(self, of: Any) -> Any:
        return of[self._random.integers(len(of))]

    def _bytes(self, path: Path) -> str:
        content = bytearray(path.read_bytes() or b"\0")
        place = int(self._random.integers(len(content)))
        match way := self._one(["flip", "cut", "empty", "append", "zero", "repeat"]):
            case "flip":
                content[place] ^= 1 << int(self._random.integers(8))
            case "cut":
                content = content[:place]
            case "empty":
                content = bytearray()
            case "append":
                content += self._random.bytes(9)
            case "zero":
                content[place : place + 16] = bytes(len(content[place : place + 16]))
            case _:
                content = content[:place] + content[max(place - 20, 0) :]
        path.write_bytes(bytes(content))
        return way

    def _files(self, path: Path) -> str:
        other = self.folder / self._one([*files(self.folder)])
        match way := self._one(["gone", "swap", "rename", "add", "folder", "link", "other"]):
            case "gone":
                path.unlink()
            case "swap":
                here, there = path.read_bytes(), other.read_bytes()
                path.write_bytes(there)
                other.write_bytes(here)
            case "rename":
                path.rename(path.with_name(f"{path.name}.bak"))
            case "add":
                (path.parent / f"{self._random.integers(99)}{path.suffix}").write_bytes(b"{}")
            case "folder":
                path.unlink()
                path.mkdir()
            case "link":
                outside = self.folder.parent / f"outside-{path.name}"
                path.replace(outside)
                path.symlink_to(outside)
            case _:
                path.write_bytes(other.read_bytes())
        return way

    def _json(self, path: Path) -> str:
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return "no JSON"
        places = [*_places(value)]
        if not places:
            return "empty"
        of, key = self._one(places)
        words = f"{key!r}"
        if self._random.random() < 0.15:
            del of[key]
        elif isinstance(of, dict) and self._random.random() < 0.15:
            of[self._one(["changed", "../x", TAG, ""])] = of.pop(key)
        else:
            new = self._one(_VALUES)
            if isinstance(of[key], int | float) and self._random.random() < 0.5:
                new = self._one([-of[key], of[key] + 1, of[key] * 2, of[key] * 1e-9, str(of[key])])
            of[key], words = new, f"{key!r} = {new!r:.40}"
        path.write_text(json.dumps(value, indent=1) + "\n")
        return words

    def _table(self, path: Path) -> str:
        try:
            table = pq.read_table(pa.BufferReader(path.read_bytes())).to_pandas()
        except (pa.ArrowException, OSError, ValueError):
            return "no table"
        if not len(table.columns) or not len(table):
            return "empty"
        column, row = self._one(table.columns), int(self._random.integers(len(table)))
        match way := self._one(["drop", "words", "value", "row", "twice", "name", "order", "nan"]):
            case "drop":
                table = table.drop(columns=column)
            case "words":
                table[column] = table[column].astype(str) + self._one(["", TAG])
            case "value":
                values = table[column].tolist()
                values[row] = self._one([-1, 0, 1e300, 2**40, "changed", TAG])
                table[column] = (
                    values
                    if isinstance(values[row], int | float)
                    else pd.Series([str(value) for value in values])
                )
            case "row":
                table = table.drop(index=row)
            case "twice":
                table = pd.concat([table, table.iloc[[row]]])
            case "name":
                table = table.rename(columns={column: self._one(["changed", TAG, "a/b", "status"])})
            case "order":
                table = table.iloc[::-1]
            case _:
                table[column] = table[column].astype(object).where(table.index != row, None)
        try:
            table.to_parquet(path, index=False)
        except (pa.ArrowException, ValueError, TypeError):
            return "cannot be written"
        return f"{way} {column}"

    def _cells(self, path: Path) -> str:
        lines = path.read_text(errors="replace").splitlines() or [""]
        place = int(self._random.integers(len(lines)))
        cells = lines[place].split(",")
        new = self._one(["", "-1", "nan", "inf", "1e400", "0.5", "x", TAG, '"', "1_0", "7,7"])
        cells[self._random.integers(len(cells))] = new
        lines[place] = ",".join(cells)
        path.write_text("\n".join(lines[: place + 1] if self._random.random() < 0.1 else lines))
        return new

    def _forge(self, path: Path) -> None:
        """Puts the digest of a changed file into the index of its folder, and the index's own."""
        self.forged = True
        for parent in (path.parent, path.parent.parent):
            if _sealed(parent, path):
                return
            try:
                index = Index.from_bytes((parent / INDEX).read_bytes())
            except (OSError, ValueError):
                continue
            if path.name == INDEX:
                return
            digests = {path.relative_to(parent).as_posix(): _digest(path)}
            forged = dataclasses.replace(index, files={**index.files, **digests})
            (parent / INDEX).write_bytes(forged.to_bytes())
            return


def _sealed(folder: Path, path: Path) -> bool:
    """Puts the digest of a changed file into the `study.json` of an archive, if there is one."""
    try:
        study = json.loads((folder / STUDY).read_bytes())
        own = study[OWN]
        digests = dict(own["files"])
        if path.name != STUDY:
            digests[path.relative_to(folder).as_posix()] = _digest(path)
        rest = {name: own[name] for name in own if name != "digest"}
        sealed = seals.sealed({**study, OWN: rest}, own["batch_sizes"], digests, own["written"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    (folder / STUDY).write_text(json.dumps(sealed, indent=2) + "\n")
    return True


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with every key in it."""
    if not isinstance(value, dict | list):
        return
    for key in [*value] if isinstance(value, dict) else range(len(value)):
        yield value, key
        yield from _places(value[key])


def readers(kind: str) -> dict[str, Callable[[Path], list[Any]]]:
    """The ways to read a folder of a kind, by name; each returns what must not change unseen."""
    if kind in ("archive", "paper"):
        options: dict[str, Any] = {}
        if kind == "paper":
            options = {"goal": bs.Goal("validation/risk", 0.1), "train_examples": 65536}

        def archived(folder: Path) -> list[Any]:
            found = bs.load_archive(folder, **options)
            return [found.measurements, found.trials, found.studies, found.audit().table()]

        return {"load_archive": archived}
    if kind == "pilot":
        return {
            "pilot.json": lambda folder: [pd.DataFrame([running._read(folder / "pilot.json")])],
            "scan": lambda folder: _tables(bs.load(folder / "scan")),
            "rerun": lambda folder: _tables(bs.load(folder / "rerun")),
        }
    found: dict[str, Callable[[Path], list[Any]]] = {
        "load": lambda folder: _analyses(bs.load(folder)),
        "load_tables": lambda folder: [*bs.records.load_tables(folder)],
    }
    if kind == "refined":
        found["refined"] = lambda folder: [bs.load(folder).refined()]
    if kind == "confirmed":
        found["confirmation"] = lambda folder: [
            (confirmed := bs.load(folder).confirmation()).table,
            confirmed.runs,
        ]
    if kind == "measured":
        found["measurement"] = lambda folder: [bs.load(folder).measurement().table]
    return found


def slow_readers(kind: str) -> dict[str, Callable[[Path, Path], object]]:
    """Those that draw or print, given a folder of their own to write into."""
    if kind == "pilot":
        return {}
    if kind in ("archive", "paper"):
        goal = bs.Goal("validation/risk", 0.1)
        return {
            "report": lambda folder, out: bs.load_archive(
                folder, goal=goal, train_examples=65536
            ).report(out / "page.html")
        }

    def command(*words: str) -> object:
        return cli.app([*words], standalone_mode=False)

    return {
        "report": lambda folder, out: bs.load(folder).report(out / "page.html"),
        "show": lambda folder, out: command("show", str(folder)),
        "export": lambda folder, out: command("export", str(folder), "-o", str(out)),
    }


def _analyses(result: bs.Result) -> list[Any]:
    """What is read and computed of a result without drawing."""
    runs, fit = [*map(json.dumps, result.runs())], str(result.scaling())
    said = pd.DataFrame({"said": [*runs, fit]})
    return [*_tables(result), result.layouts(), result.audit().table(), said]


def _tables(result: bs.Result) -> list[Any]:
    return [result.measurements, result.trials, result.steps_to_target()]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of reading one folder in one way.

    Attributes:
      kind: of the folder.
      way: by which it was read.
      what: `refused`, `same`, `believed`, or one of `BAD`.
      words: of the changes, and of what was wrong.
    """

    kind: str
    way: str
    what: str
    words: str


def tried(
    kind: str, source: Path, seed: int, *, slow: bool, wanted: dict[str, list[Any]]
) -> list[Outcome]:
    """Changes a copy of a folder, and reads it in every way.

    Args:
      kind: of the folder.
      source: the folder, which is left alone.
      seed: of the changes.
      slow: whether it is read by the slow ways too.
      wanted: what the source itself gives, by way.
    """
    random = np.random.default_rng([seed, sum(kind.encode())])
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as root:
        folder, out = Path(root, "a", "folder"), Path(root, "out")
        shutil.copytree(source, folder, symlinks=True)
        out.mkdir()
        mutation = Mutation(folder, random)
        for _ in range(1 + int(random.integers(3)) * int(random.integers(2))):
            mutation.change()
        before = files(Path(root, "a"))
        found = []
        for way, read in readers(kind).items():
            what, words = _outcome(lambda read=read: read(folder), mutation.forged, wanted[way])
            found.append(Outcome(kind, way, what, f"{'; '.join(mutation.done)} -> {words}"))
        for way, draw in slow_readers(kind).items() if slow else ():
            what, words = _outcome(lambda draw=draw: draw(folder, out) and None, True, None)
            found.append(Outcome(kind, way, what, f"{'; '.join(mutation.done)} -> {words}"))
        pages = [path.read_text() for path in out.rglob("*.html")]
        if any(TAG in page for page in pages):
            found.append(Outcome(kind, "report", "unescaped", "; ".join(mutation.done)))
        if files(Path(root, "a")) != before:
            found.append(Outcome(kind, "all", "written", "; ".join(mutation.done)))
    return found


def _outcome(read: Callable[[], Any], forged: bool, wanted: list[Any] | None) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tables = read()
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"
        ours = isinstance(error, _OWN) and at.filename.startswith(_PACKAGE)
        return ("refused" if ours else "escaped"), words[:300]
    if wanted is None or all(
        some.equals(other) for some, other in zip(tables, wanted, strict=True)
    ):
        return "same", ""
    return ("believed" if forged else "other"), "another table"


def expected(kind: str, source: Path) -> dict[str, list[Any]]:
    """What the readers of a kind make of a folder as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {way: read(source) for way, read in readers(kind).items()}


def main() -> None:
    """Mutates so many folders, and writes what came of it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folders", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="to stop after, at the latest")
    parser.add_argument("--output", type=Path, default=Path("validation/results/fuzzing.json"))
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    bad: list[dict[str, str]] = []
    folders = 0
    with tempfile.TemporaryDirectory(prefix="fuzzing-sources-") as root:
        made = sources(Path(root))
        wanted = {kind: expected(kind, folder) for kind, folder in made.items()}
        while folders < arguments.folders and time.monotonic() < end:
            kind = [*made][folders % len(made)]
            slow = folders % _PAGES == 0
            seed = arguments.seed + folders
            for one in tried(kind, made[kind], seed, slow=slow, wanted=wanted[kind]):
                counts[one.kind, one.what] += 1
                if one.what in BAD:
                    bad.append(dataclasses.asdict(one) | {"seed": str(seed)})
                    print(bad[-1], flush=True)
            folders += 1
            if folders % 500 == 0 or folders == arguments.folders:
                _write(arguments, folders, counts, bad)
    _write(arguments, folders, counts, bad)


def _write(
    arguments: argparse.Namespace,
    folders: int,
    counts: collections.Counter[tuple[str, str]],
    bad: list[dict[str, str]],
) -> None:
    kinds = sorted({kind for kind, _ in counts})
    words = ["refused", "same", "believed", *BAD]
    found = {
        "command": f"python -m validation.fuzzing --folders {folders} --seed {arguments.seed}",
        "folders": folders,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
            "pandas": pd.__version__,
            "pyarrow": pa.__version__,
        },
        "rows": [{"kind": kind} | {word: counts[kind, word] for word in words} for kind in kinds],
        "bad": bad[:50],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    totals = {word: sum(counts[kind, word] for kind in kinds) for word in words}
    print(f"{folders} folders: {totals}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    main()
