"""The command line: what a folder of results says, without a line of code."""

from __future__ import annotations

import contextlib
import enum
import sys
import time
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import pandas as pd
import typer

import batchscale as bs
from batchscale.files import local_path, numbered, replacing
from batchscale.measurement import NotYetError

app = typer.Typer(
    name="batchscale",
    help="Reads folders of results: nothing trains, and nothing in them is changed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Folder = Annotated[Path, typer.Argument(help="The folder of a study.", show_default=False)]
_FIGURES = {
    "steps": lambda result: bs.plots.steps_to_target(result),
    "confirmation": lambda result: bs.plots.confirmation(result),
    "measurement": lambda result: bs.plots.measurement(result.measurement()),
    "measured_trials": lambda result: bs.plots.measured_trials(result.measurement()),
    "hyperparameters": lambda result: bs.plots.hyperparameters(result),
    "learning_rates": lambda result: bs.plots.learning_rates(result),
    "frontier": lambda result: bs.plots.frontier(result),
    "sensitivity": lambda result: bs.plots.sensitivity(result),
    "tuning_curve": lambda result: bs.plots.tuning_curve(result),
}


class Format(enum.StrEnum):
    """Of a table on disk."""

    CSV = "csv"
    PARQUET = "parquet"
    LATEX = "latex"
    MARKDOWN = "markdown"


_ENDINGS = {
    Format.CSV: "csv",
    Format.PARQUET: "parquet",
    Format.LATEX: "tex",
    Format.MARKDOWN: "md",
}


@app.command()
def show(
    folder: Folder,
    watch: Annotated[
        float | None,
        typer.Option(help="Show it again after so many seconds, until it is interrupted."),
    ] = None,
) -> None:
    """Steps to target and the critical batch size, as far as the study has come."""
    while True:
        _TOLD.clear()
        found = None
        try:
            found = _found(folder)
            typer.echo(str(found))
        except NotYetError as early:
            typer.echo(str(early))
        if isinstance(found, bs.Result):
            done = found.steps_to_target()["batch_size"].tolist()
            for line in _under_way(found, done):
                typer.echo(line)
            confirmed = found.confirmed() if done else None
            if confirmed is not None:
                typer.echo(f"medians of the tuned settings under fresh seeds:\n{confirmed}")
                typer.echo(str(confirmed.scaling()))
            elif done:
                typer.echo(str(found.scaling()))
        if watch is None:
            return
        typer.echo(f"-- {time.strftime('%H:%M:%S')}; again in {watch:g} seconds, Ctrl-C ends")
        time.sleep(watch)


def _under_way(result: bs.Result, done: Sequence[int]) -> list[str]:
    """How far batch sizes are that are begun and not done, a line each."""
    steps = result.measurements.reset_index("step")["step"].groupby("batch_size").max()
    begun = [size for size in steps.index if size not in done]
    most = result.definition.max_steps
    return [
        f"batch size {size:,}: step {steps[size]:,} of at most {most[size]:,}" for size in begun
    ]


@app.command()
def audit(folder: Folder) -> None:
    """Whether the study can be believed: named checks, evidence and remedies."""
    found = _found(folder).audit()
    typer.echo(str(found))
    raise typer.Exit(1 if any(check.verdict == bs.audit.Verdict.FAIL for check in found) else 0)


@app.command()
def report(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
) -> None:
    """One self-contained page of HTML."""
    typer.echo(str(_found(folder).report(output)))


@app.command()
def plot(
    folder: Folder,
    figure: Annotated[str, typer.Argument(help=f"One of {', '.join(_FIGURES)}.")] = "steps",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Without an ending: PNG and SVG.")
    ] = None,
) -> None:
    """A figure, as PNG and SVG."""
    if figure not in _FIGURES:
        raise ValueError(f"plot: got {figure!r}, wanted one of {', '.join(_FIGURES)}.")
    result = _result(folder)
    for path in bs.plots.save(_FIGURES[figure](result), output or Path(figure)):
        typer.echo(str(path))


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Two or more.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Of a figure, without an ending.")
    ] = None,
) -> None:
    """Critical batch sizes and steps of studies of one goal, with the intervals of their ratios."""
    names = [local_path(folder).name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError("compare: got one folder twice, wanted two or more studies.")
    found = bs.compare({name: _found(path) for name, path in zip(names, folders, strict=True)})
    typer.echo(str(found))
    if output is not None:
        for path in bs.plots.save(bs.plots.comparison(found), output):
            typer.echo(str(path))


@app.command()
def export(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder of tables.")],
    format: Annotated[Format, typer.Option(help="Of the tables.")] = Format.CSV,
) -> None:
    """The tables: steps, optima, trials, measurements, confirmed or measured medians."""
    result = _result(folder)
    tables = {"audit": _found(folder).audit().table()}
    if len(result.trials):
        tables["steps_to_target"], tables["optima"] = result.steps_to_target(), result.optima()
        tables["trials"] = result.trials.reset_index()
        tables["measurements"] = result.measurements.reset_index()
    with contextlib.suppress(FileNotFoundError):
        tables["confirmation"] = result.confirmation().table
    with contextlib.suppress(FileNotFoundError):
        measured = result.measurement()
        tables["measurement"] = measured.table
        tables["measurement_trials"] = measured.trials.reset_index()
    where = local_path(output, "output")
    tables = {name: table for name, table in tables.items() if len(table)}
    _check_free(where, tables, _ENDINGS[format])
    for name, table in tables.items():
        path = where / f"{name}.{_ENDINGS[format]}"
        with replacing(path) as file:
            if format == Format.PARQUET:
                table.to_parquet(file, index=False)
            else:
                file.write(as_text(table, format).encode())
        typer.echo(str(path))


_TABLES = (
    *("audit", "steps_to_target", "optima", "trials", "measurements"),
    *("confirmation", "measurement", "measurement_trials"),
)


def _check_free(where: Path, tables: Collection[str], ending: str) -> None:
    """Refuses a folder whose files are a study's, or tables that would stay beside these."""
    for name in ("index.json", "plan.json"):
        if (where / name).exists():
            raise ValueError(
                f"{where}: holds a study, whose own tables an export would replace. Export into a "
                f"folder of its own, such as {where / 'tables'}."
            )
    others = [f"{name}.{ending}" for name in _TABLES if name not in tables]
    stay = [name for name in others if (where / name).exists()]
    if stay:
        raise ValueError(
            f"{where}: {', '.join(stay)} would stay of another export, and this study has no such "
            "table. Export into another folder, or delete what is there."
        )


def as_text(table: pd.DataFrame, format: Format) -> str:
    r"""A table as CSV, LaTeX or Markdown.

    >>> table = pd.DataFrame({"batch_size": [8, 16], "steps": [120.0, 61.5]})
    >>> print(as_text(table, Format.MARKDOWN))
    |   batch_size |   steps |
    |-------------:|--------:|
    |            8 |   120   |
    |           16 |    61.5 |
    """
    if format == Format.LATEX:
        shown: Any = {name: _digits for name, of in table.items() if of.dtype.kind == "f"}
        styled = table.style.format(escape="latex").format(shown).hide(axis="index")
        escaped = [name.replace("_", r"\_") for name in map(str, table.columns)]
        return styled.relabel_index(escaped, axis="columns").to_latex(hrules=True)
    if format == Format.MARKDOWN:
        return table.to_markdown(index=False, floatfmt=".15g")
    return table.to_csv(index=False)


def _digits(value: float) -> str:
    """A number in a table to be printed: whole ones as they are, others to four digits or all.

    >>> _digits(1234567.0), _digits(3.21e-5), _digits(61.53461)
    ('1234567', '3.21e-05', '61.53')
    """
    return f"{value:.4g}" if abs(value) < 1e4 and value % 1 else f"{value:.15g}"


def _result(folder: Path) -> bs.Result:
    where = local_path(folder)
    if not (where / "pilot" / "pilot.json").exists():
        return bs.load(where)
    begun = [where / numbered("measured", place) for place in range(10)]
    held = [path for path in begun if (path / "plan.json").is_file()]
    if not held:
        raise NotYetError(f"{where}: its pilot is not finished yet. The same call goes on with it.")
    return bs.load(held[-1])


def _found(folder: Path) -> bs.Result | bs.Measurement:
    """What a folder is about: a measurement by one design, if that is all there is of it."""
    result = _result(folder)
    if len(result.trials):
        return result
    try:
        return result.measurement()
    except FileNotFoundError:
        return result


_TOLD: set[str] = set()


def _told_once(message: Warning | str, *_: object) -> None:
    """A warning as a line: several numbers of one folder have the same to say."""
    if str(message) not in _TOLD:
        _TOLD.add(str(message))
        typer.echo(f"batchscale: {message}", err=True)


def main() -> None:
    """Runs the command line; what is wrong is told in a line, without a traceback."""
    mpl.use("agg")
    warnings.showwarning = _told_once
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"batchscale: {error}", err=True)
        sys.exit(2)
