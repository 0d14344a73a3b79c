"""Studies that are killed, or whose disk fails, at random moments: does anything get lost?

    python -m validation.soak

Each call of a study (run, extend, refine, confirm, measure) is run once to its end. Then again,
from the same start, in processes that are struck at random moments (`striking`): at an operation
on the disk, before or after it; within a segment of training; where trials are packed anew. After
each strike the folder is opened; then the same call is made again, struck once more or not; at the
end the tables are compared with those of the call that nothing befell, to the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

import batchscale as bs
from batchscale import records
from batchscale.records import provenance
from batchscale.runner import batch_size, measure
from batchscale.runner.batch_size import Pauses
from batchscale.theory import NoisyQuadratic
from validation.striking import FAULTS, KILLS, PLACES, Moment, struck

SIZES = [4, 16, 64, 256]
STUDY = bs.Study(
    workload=NoisyQuadratic.power_law(30).workload(),
    optimizer="momentum",
    # The highest rates diverge, and are replaced by trials that catch up.
    space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-3, 10), momentum=0.9),
    batch_sizes=SIZES[:2],
    goal=bs.Goal("validation/risk", 0.05),
    trials=4,
    max_steps=1_000,
    evaluation_spacing=0.2,
)
CALLS: dict[str, Callable[[Path], Any]] = {
    "run": lambda folder: STUDY.run(folder, progress=False),
    "extend": lambda folder: STUDY.extend(
        folder, stop=3.0, trials=5, batch_sizes=SIZES[:3], progress=False
    ),
    "refine": lambda folder: STUDY.refine(folder, rounds=2, trials=2, until=0, progress=False),
    "confirm": lambda folder: STUDY.confirm(
        folder, settings=2, selection_seeds=2, seeds=3, progress=False
    ),
    "measure": lambda folder: bs.Study(
        workload=STUDY.workload,
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 8)),
        batch_sizes=SIZES,
        goal=STUDY.goal,
        trials=8,
        max_steps=1_000,
        evaluation_spacing=0.2,
    ).measure(folder, 0.6, examples=1, progress=False),
}
BEFORE = {"extend": "run", "refine": "extend", "confirm": "refine"}


def apart(function: Callable[[], None], log: Path) -> int:
    """The status of a function in a process of its own, as `os.waitstatus_to_exitcode` has it.

    Forked: this process must not have started JAX, nor read tables, whose threads a fork lacks.
    """
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # else a shell's background process ignores them
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    status = 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def call(
    name: str, folder: Path, moment: Moment | None, log: Path, told: Path | None = None
) -> int:
    """Makes a call of the study in a process of its own.

    Args:
      name: of the call.
      folder: of the study.
      moment: when it is struck, if it is.
      log: what it writes to its streams.
      told: gets how often it passed each place, as JSON.
    """

    def work() -> None:
        # What is on disk is then as much as it can be; with the usual pauses a strike finds less.
        batch_size.PAUSES = Pauses(0.0, 0.0)
        # Timed anew each time, they would decide what is asked where.
        measure.seconds_per_step = lambda plan, engine: dict.fromkeys(SIZES, 3e-6)
        with struck(folder, moment) as passed:
            CALLS[name](folder)
        if told is not None:
            told.write_text(json.dumps(passed))

    return apart(work, log)


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """All that a study has found, also what was run beside it."""
    found = {}
    for part in ("", records.CONFIRMED, records.REFINED, records.MEASURED):
        if (folder / part / "plan.json").exists():
            measurements, trials = records.load_tables(folder / part)
            found |= {f"{part}/measurements": measurements, f"{part}/trials": trials}
    return found


def differences(folder: Path, whole: Path) -> dict[str, int]:
    """Rows that are lost, and rows that are wrong or should not be, of all tables."""
    found, wanted = tables(folder), tables(whole)
    lost = wrong = 0
    for name in wanted.keys() | found.keys():
        want = wanted.get(name, pd.DataFrame())
        have = found.get(name, pd.DataFrame())
        lost += len(want.index.difference(have.index))
        with contextlib.suppress(AssertionError):
            pd.testing.assert_frame_equal(have, want, check_exact=True)
            continue
        both = want.index.intersection(have.index)
        other = [
            repr(a) != repr(b)
            for a, b in zip(have.loc[both].to_numpy(), want.loc[both].to_numpy(), strict=True)
        ]
        wrong += sum(other) + len(have.index.difference(want.index)) or 1
    return {"lost": lost, "wrong": wrong}


def compared(folder: Path, whole: Path, log: Path, told: Path) -> dict[str, int]:
    """`differences`, found in a process of its own."""
    told.unlink(missing_ok=True)
    status = apart(lambda: _write(told, differences(folder, whole)), log)
    return json.loads(told.read_text()) if status == 0 else {"lost": -1, "wrong": -1}


def opens(folder: Path, log: Path) -> bool:
    """Whether what a strike has left can be loaded, or is not there yet."""

    def load() -> None:
        with contextlib.suppress(FileNotFoundError):
            bs.load(folder)

    return apart(load, log) == 0


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def main() -> None:
    """Strikes, and writes what came of it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--moments", type=int, default=50, help="strikes in all")
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=list(CALLS))
    parser.add_argument("--hows", nargs="+", choices=(*KILLS, *FAULTS), default=[*KILLS, *FAULTS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("validation/results/soak.json"))
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as root:
        if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_compilation_cache_dir", f"{root}/cache")
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        rows = soak(Path(root), arguments.calls, arguments.hows, arguments.moments, random)
    found = {
        "command": shlex.join(["python", "-m", "validation.soak", *sys.argv[1:]]),
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - began),
        "table": summary(rows),
        "moments": rows,
        "machine": provenance(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(pd.DataFrame(found["table"]).to_string(index=False))
    sys.exit(any(row["lost"] or row["wrong"] or not row["opens"] for row in rows))


def soak(
    root: Path, calls: list[str], hows: list[str], moments: int, random: np.random.Generator
) -> list[dict[str, Any]]:
    """Strikes calls until there were so many; one row a strike."""
    log, told = root / "log.txt", root / "told.json"
    whole, counts = {}, {}
    needed = set(calls)
    for name in reversed(CALLS):
        if name in needed and name in BEFORE:
            needed.add(BEFORE[name])
    for name in (name for name in CALLS if name in needed):
        whole[name] = root / f"{name}-whole"
        if name in BEFORE:
            shutil.copytree(whole[BEFORE[name]], whole[name])
        if call(name, whole[name], None, log, told):
            raise RuntimeError(f"{name}: {log.read_text()[-2000:]}")
        counts[name] = json.loads(told.read_text())
        print(f"{name}: {counts[name]}", flush=True)
    rows: list[dict[str, Any]] = []
    turns = 0
    while len(rows) < moments:
        name = calls[turns % len(calls)]
        turns += 1
        folder = root / "struck"
        shutil.rmtree(folder, ignore_errors=True)
        if name in BEFORE:
            shutil.copytree(whole[BEFORE[name]], folder)
        chain = []
        for turn in range(min(int(random.integers(1, 4)), moments - len(rows))):
            moment = drawn(counts[name], hows, random, share=1 / (1 + 2 * turn))
            status = call(name, folder, moment, log)
            if status == 0:  # what was left of the call ended before the moment came
                break
            if (gone := Path(f"{folder}.gone")).exists():
                if folder.exists():
                    raise RuntimeError(f"{folder}: made again, after it had gone")
                gone.rename(folder)
            ended = signal.Signals(-status).name if status < 0 else status
            row = {"call": name} | moment._asdict() | {"of": counts[name][moment.place]}
            chain.append(row | {"ended": ended, "opens": opens(folder, log)})
        again = call(name, folder, None, log)
        found = compared(folder, whole[name], log, told)
        if again or any(found.values()):
            print(log.read_text()[-4000:])
        rows += [row | {"resumed": again == 0} | found for row in chain]
        for row in rows[len(rows) - len(chain) :]:
            print(json.dumps(row), flush=True)
    return rows


def drawn(
    counts: dict[str, int], hows: list[str], random: np.random.Generator, share: float
) -> Moment:
    """A moment at random: any place, any way, and any passing in a first share of them."""
    while True:
        how = hows[random.integers(len(hows))]
        place = PLACES[random.integers(len(PLACES))]
        on_disk = place in ("operation", "plan", "compaction")
        if counts.get(place, 0) and (on_disk or not how.endswith("disk")):
            return Moment(place, int(random.integers(math.ceil(share * counts[place]))) + 1, how)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each way of being struck."""
    return [
        {
            "how": how,
            "strikes": len(own),
            "did not open": sum(not row["opens"] for row in own),
            "did not resume": sum(not row["resumed"] for row in own),
            "rows lost": sum(row["lost"] for row in own),
            "rows wrong": sum(row["wrong"] for row in own),
        }
        for how in dict.fromkeys(row["how"] for row in rows)
        if (own := [row for row in rows if row["how"] == how])
    ]


if __name__ == "__main__":
    main()
