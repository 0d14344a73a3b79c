"""Writes the tables of the documentation from what benchmarks, validation and experiments recorded.

    python -m benchmarks.tables

What stands between `<!-- name -->` and `<!-- end -->` is replaced by the table of that name.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import fits

RESULTS, VALIDATION = Path("benchmarks/results"), Path("validation/results")
ANALYSES = Path("results/analysis")
PERFORMANCE, ANALYSIS = Path("docs/performance.md"), Path("docs/analysis.md")
SCALING_OUT = Path("docs/scaling_out.md")


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["--"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _read(name: str, folder: Path = RESULTS) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def _time(microseconds: float) -> str:
    return f"{microseconds:,.0f}" if microseconds >= 100 else f"{microseconds:.3g}"


def _made(machine: dict[str, Any]) -> str:
    """When and on what results were recorded."""
    versions, (device, *_) = machine["versions"], machine["devices"]
    return (
        f"Recorded {machine['date'][:10]} with `{machine['command']}` on {machine['processor']}, "
        f"{machine['processors']} cores, {device['count']} x {device['kind']}; Python "
        f"{versions['python']}, jax {versions['jax']}."
    )


def throughput() -> str:
    """Microseconds a step of one trial, and how many times longer each peer takes."""
    found = _read("throughput")
    timed = dict.fromkeys(peer for row in found["rows"] for peer in row["microseconds"])
    peers = [peer for peer in timed if peer != "batchscale"]
    rows = [
        (
            row["workload"],
            f"{row['batch_size']:,}",
            _time(row["microseconds"]["batchscale"]),
            *(f"{row['ratio'][peer]:.3g}x" if peer in row["ratio"] else "" for peer in peers),
            f"{row['gflops']:.3g}",
            f"{row['share_of_product_rate']:.0%}",
            f"{row['share_of_roofline']:.0%}",
        )
        for row in found["rows"]
    ]
    head = ["workload", "batch size", "µs", *peers, "GFLOP/s", "of product rate", "of roofline"]
    # Rows that were timed in another session have the rate of that one; small shares are rounded.
    large = [row for row in found["rows"] if row["share_of_product_rate"] > 0.5]
    rates = sorted({round(row["gflops"] / row["share_of_product_rate"]) for row in large})
    rate = f"{rates[0]} GFLOP/s" if len(rates) == 1 else f"{rates[0]} to {rates[-1]} GFLOP/s"
    note = f"A large matrix product, when each row was timed: {rate}."
    return f"{_made(found['machine'])} {note}\n\n" + _table(head, rows)


def cost() -> str:
    """Whole studies: examples, seconds, and how they are split."""
    rows, notes = [], []
    for name in ("digits", "mnist_three"):
        found = _read(f"cost_{name}")
        for way, runs in found["runs"].items():
            first = runs[0]
            rows.append(
                (
                    name,
                    way,
                    f"{first['examples']:,}",
                    f"{found['median_wall'][way]:.0f}",
                    *(
                        f"{first['seconds'][part]:.0f}"
                        for part in ("training", "evaluation", "compilation", "host")
                    ),
                )
            )
        if "optuna" in found:
            rows.append((name, "Optuna", "", f"{found['optuna']['wall']:,.0f}", *[""] * 4))
            timed = found["optuna"]["trials_timed"]
            optuna = (
                f", {found['times_faster_than_optuna']:.3g} times less than Optuna "
                f"({timed} trials a batch size timed)"
            )
        else:
            optuna = ""
        same = "the same steps and optima" if found["same_answer"] else "NOT the same answer"
        notes.append(
            f"{name}: {same}, {found['share_of_examples']:.0%} of the examples and "
            f"{found['times_faster_than_plain']:.3g} times less time than the plain protocol"
            f"{optuna}; at most {found['most_evaluation']:.0%} of the time of a batch size goes to "
            f"evaluation; {found['warm_wall']:.0f} s with a warm compilation cache."
        )
    head = ["study", "way", "examples", "wall s", "training", "evaluation", "compilation", "host"]
    made = _made(_read("cost_digits")["runs"]["batchscale"][0]["machine"])
    return "\n\n".join([made, _table(head, rows), *notes])


def scaling() -> str:
    """The time of a trial against trials, devices, lanes and models; and memory."""
    found = _read("scaling")
    parts = [
        _made(found["machine"]),
        _table(
            ["trials", "lanes", "µs a step of one trial", "MB on a device"],
            [
                (
                    f"{r['trials']:,}",
                    r["lanes"],
                    _time(r["microseconds"]),
                    f"{r['bytes'] / 1e6:,.0f}",
                )
                for r in found["trials"]
            ],
        ),
    ]
    if "devices" in found:
        parts.append(
            _table(
                ["virtual devices", "µs a step of one trial"],
                [(r["devices"], _time(r["microseconds"])) for r in found["devices"]],
            )
        )
    parts += [
        _table(
            ["lanes", "µs a step of one trial"],
            [(r["lanes"], _time(r["microseconds"])) for r in found["lanes"]],
        ),
        _table(
            ["model", "parameters", "lanes", "µs a step of one trial", "GFLOP/s"],
            [
                (
                    r["model"],
                    f"{r['parameters']:,}",
                    r["lanes"],
                    _time(r["microseconds"]),
                    f"{r['gflops']:.3g}",
                )
                for r in found["model"]
            ],
        ),
        _table(
            ["lanes", "microbatch", "MB set aside for a step"],
            [
                (r["lanes"], r["microbatch"], f"{r['scratch_bytes'] / 1e6:.1f}")
                for r in found["memory"]
            ],
        ),
    ]
    return "\n\n".join(parts)


def pruning() -> str:
    """What dropping trials early would save, and lose."""
    rows = [
        (r["first"], r["factor"], f"{r['saved']:.0%}", f"{r['lost']} of {r['batch_sizes']}")
        for r in _read("pruning", VALIDATION)["rows"]
    ]
    head = ["from step", "steps behind the best", "steps saved", "batch sizes with another answer"]
    return _table(head, rows)


def streaming() -> str:
    """Training on streams beside resident data, and the share of time that devices wait."""
    found = _read("streaming")
    rows = [
        (
            row["workload"],
            row["source"],
            f"{row['batch_size']:,}",
            _time(row["resident"]),
            _time(row["streamed"]),
            f"{row['ratio']:.2f}",
            f"{row['waiting']:.1%}",
        )
        for row in found["rows"]
    ]
    head = ["workload", "source", "batch size", "resident, µs", "streamed, µs"]
    head += ["ratio", "waiting"]
    return f"{_made(found['machine'])}\n\n" + _table(head, rows)


def measure() -> str:
    """How often intervals of one design hold the truth, and how much cheaper it is."""
    rows = []
    for row in _read("measure_share_8", VALIDATION):
        cheaper = row["times cheaper: runs, steps, examples"]
        some = (row["b_crit: held"], row["b_crit: rms error"])
        rows.append(
            (
                row["row"],
                row["studies"],
                " / ".join(f"{x:g}" for x in cheaper),
                f"{row['steps: held']:.2f}",
                f"{row['steps: rms error']:.3f}",
                *(
                    "" if x is None else f"{x:{kind}}"
                    for x, kind in zip(some, (".2f", ".3f"), strict=True)
                ),
                "" if row["refused"] is None else f"{row['refused']:.2f}",
                f"{row['doubted a study']:g}",
                f"{row['searched a study']:g}",
            )
        )
    head = [
        *("simulated", "studies", "times fewer runs / steps / examples"),
        *("steps held", "error of log steps", "B_crit held", "error of log B_crit"),
        *("B_crit refused", "doubted a study", "searched a study"),
    ]
    return _table(head, rows)


def rounds() -> str:
    """Where the time of a measurement goes, medians of several."""
    found = _read("rounds_digits")
    parts = next(iter(found["median"].values()))
    rows = [
        (way, *(f"{seconds:.1f}" for seconds in values.values()))
        for way, values in found["median"].items()
    ]
    return f"{_made(found['machine'])}\n\n{_table(['programs', *parts], rows)}"


def estimates() -> str:
    """What calls were said to cost and what they took, in seconds by part."""
    with (RESULTS / "estimates.csv").open() as file:
        found = list(csv.DictReader(file))
    parts = "training", "evaluation", "compilation", "host"
    rows = [
        (
            one["row"].replace("_", " "),
            one["known"],
            *(f"{float(one[f'{way}']):.0f}" for way in ("predicted", "taken")),
            f"{float(one['ratio']):.2f}",
            f"{float(one['cpu_ratio']):.2f}" if one["cpu_ratio"] else "",
            *(
                f"{float(one[f'predicted_{part}']):.1f} / {float(one[f'taken_{part}']):.1f}"
                for part in parts
            ),
            f"{float(one['load_before']):.0f} / {float(one['load_after']):.0f}",
        )
        for one in found
    ]

    def within(name: str) -> str:
        ratios = [float(one[name]) for one in found if one[name]]
        close = sum(1 / 1.5 <= ratio <= 1.5 for ratio in ratios)
        return f"{close} of {len(ratios)}"

    head = ["row", "what was known", "said s", "took s", "took / said", "of the processor"]
    head += [*parts, "load before / after"]
    words = (
        f"Within a factor of 1.5: {within('ratio')} by wall time, {within('cpu_ratio')} by seconds "
        "of the processor. Parts are seconds said / taken."
    )
    made = _made(_read("estimates")["machine"])
    return f"{made}\n\n{words}\n\n{_table(head, rows)}"


def executors() -> str:
    """Seconds of a study by two workers and by one process."""
    found = _read("executors")
    words = {"process": "one process, two devices", "dask": "two Dask workers, a core each"}
    rows = [
        (
            words[way],
            ", ".join(f"{one['seconds']:.0f}" for one in runs),
            f"{found['seconds'][way]:.0f}",
            f"{found['seconds'][way] / found['seconds']['process']:.2f}",
        )
        for way, runs in found["runs"].items()
    ]
    same = "the same, to the bit" if found["same_rows"] else "not the same"
    table = _table(["", "seconds", "median", "against one process"], rows)
    return f"{_made(found['machine'])} The tables are {same}.\n\n{table}"


def processes() -> str:
    """Seconds of batch sizes in two processes and in one."""
    found = _read("processes")
    rows = [
        (
            f"{row['batch_size']:,}",
            row["processes"],
            *(f"{row[part]:.1f}" for part in ("training", "evaluation", "other")),
            f"{row['ratio']:.2f}",
        )
        for row in found["rows"]
    ]
    head = ["batch size", "processes", "training s", "evaluation s", "other s"]
    return f"{_made(found['machine'])}\n\n{_table([*head, 'against one process'], rows)}"


def confirmation() -> str:
    """Digits: the best of N beside the tuned settings' medians."""
    rows = pd.read_csv(ANALYSES / "digits/confirmation.csv").to_dict("records")
    names = [f"{row['batch_size']:,}" for row in rows[:-1]]
    names.append(f"{rows[-1]['batch_size']:,} (full)")
    head = ["batch size", "best of N", "median", "interval", "middle 80% of seeds", "luck"]
    return _table(
        head,
        [
            (
                name,
                f"{row['best_of_n']:,.0f}",
                f"{row['steps']:,.0f}",
                f"{row['low']:,.0f} to {row['high']:,.0f}",
                f"{row['quantile_10']:,.0f} to {row['quantile_90']:,.0f}",
                f"{row['luck']:.2f}",
            )
            for name, row in zip(names, rows, strict=True)
        ],
    )


def fitted() -> str:
    """Critical batch sizes of the four studies of analysis.md."""
    table = pd.read_csv(ANALYSES / "fits.csv")
    return fits.written(table[~table["study"].str.startswith("figure")])


def definitions() -> str:
    """Critical batch sizes of digits and MNIST under other definitions of steps to target."""
    digits, mnist = (
        pd.read_csv(ANALYSES / study / "transitions.csv").to_dict("records")
        for study in ("digits", "mnist")
    )
    rows = []
    for name, *pair in zip(fits.DEFINITIONS, digits, mnist, strict=True):
        row = [name]
        for of in pair:
            ends = [of["low"], of["high"]]
            known = pd.notna(of["b_crit"]) and pd.isna(of["refused"])
            low, high = (fits.rounded(end, 3) if known else "" for end in ends)
            row.append(
                f"{fits.rounded(of['b_crit'], 3)} ({low} to {high})" if known else "not known"
            )
            row += [
                fits.rounded(of[key], 2) if known else ""
                for key in ("perfect_until", "plateau_from")
            ]
        rows.append(row)
    head = ["definition", "digits: B_crit", "perfect until", "plateau from"]
    return _table([*head, "MNIST: B_crit", "perfect until", "plateau from"], rows)


def recommendation() -> str:
    """What is said of digits by its medians, in steps."""
    return _quoted(0, slice(None))


def recommendation_in_seconds() -> str:
    """What is said of digits by its medians, in seconds, without what is said of steps too."""
    return _quoted(1, slice(2, None))


def _quoted(block: int, lines: slice) -> str:
    blocks = (ANALYSES / "digits/recommendation.txt").read_text().split("\n\n")
    return "\n".join(f"> {line}" for line in blocks[block].splitlines()[lines])


def sensitivity() -> str:
    """The share of the learning rates that works, on digits and on MNIST."""
    columns = {}
    for study in ("digits", "mnist"):
        for budget in ("", "_steps", "_epochs"):
            table = pd.read_csv(ANALYSES / study / f"sensitivity{budget}.csv")
            columns[study, budget] = table.set_index("batch_size")
    sizes = [[*columns[study, ""].index] for study in ("digits", "mnist")]
    rows = [(one, one if one in sizes[1] else None) for one in sizes[0][:-1]]
    rows.append((sizes[0][-1], sizes[1][-1]))  # the whole set, and the largest
    cells = []
    for pair in rows:
        shown = dict.fromkeys(f"{size:,}" for size in pair if size is not None)
        line = [" / ".join(shown)]
        for study, size in zip(("digits", "mnist"), pair, strict=True):
            if size is None:
                line += [""] * 4
                continue
            whole = columns[study, ""].loc[size]
            line += [f"{whole['near']:.0%}", f"{whole['learning_rate_width']:.2f}"]
            line += [
                f"{columns[study, of].loc[size]['reached']:.0%}" for of in ("_steps", "_epochs")
            ]
        cells.append(line)
    head = ["batch size", "digits: within twice the fewest steps", "width", "in 400 steps"]
    head += ["in 7 epochs", "MNIST: within twice the fewest steps", "width", "in 900 steps"]
    return _table([*head, "in 2 epochs"], cells)


TABLES: dict[Path, dict[str, Callable[[], str]]] = {
    PERFORMANCE: {
        "throughput": throughput,
        "streaming": streaming,
        "cost": cost,
        "rounds": rounds,
        "scaling": scaling,
        "pruning": pruning,
        "estimates": estimates,
    },
    ANALYSIS: {
        "measure": measure,
        "confirmation": confirmation,
        "fits": fitted,
        "definitions": definitions,
        "recommendation": recommendation,
        "recommendation in seconds": recommendation_in_seconds,
        "sensitivity": sensitivity,
    },
    SCALING_OUT: {"executors": executors, "processes": processes},
}


def written(page: Path) -> str:
    """A page with its tables replaced by those of the recorded results."""
    text = page.read_text()
    for name, table in TABLES[page].items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n)(?:.*?\n)??(<!-- end -->)",
            lambda match, table=table: match[1] + table() + "\n" + match[2],
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"{page}: got {count} places for the table {name!r}, wanted one.")
    return text


def main() -> None:
    """Rewrites the pages."""
    for page in TABLES:
        page.write_text(written(page))


if __name__ == "__main__":
    main()
