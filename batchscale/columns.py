"""The columns of tables, declared where a table is made; a hyperparameter needs another name.

Tables carry the hyperparameters as columns beside their own, so that one of the same name would be
overwritten, or make an analysis fail long after the study was trained.
"""

from __future__ import annotations

from collections.abc import Iterable

_TABLES: dict[str, tuple[str, ...]] = {}


def declare(table: str, *names: str) -> tuple[str, ...]:
    """The columns of a table of the library, in order; from now on they are taken.

    Args:
      table: what it is, in a few words; one declaration each.
      *names: of its columns; `"*_edge"` is a column for each hyperparameter.

    >>> declare("an example", "example_column")
    ('example_column',)
    """
    _TABLES[table] = names
    return names


# Of packages that are imported when they are first used: their names are taken before that, too.
GENERALISATION = declare(
    "generalisation",
    *("batch_size", "trial", "step", "train_loss", "test_loss", "gap"),
    *("train_error", "test_error", "error_gap", "sharpness", "sharpness_error"),
)
NOISE_SCALES = declare(
    "noise scales",
    *("step", "loss", "b_simple", "low", "high", "b_noise", "b_noise_low", "b_noise_high"),
)
BRANCHES = declare(
    "branches", "step", "examples", "batch_size", "learning_rate_factor", "copy", "loss"
)
LOCAL = declare(
    "local critical batch sizes",
    *("step", "examples", "loss", "recovers", "b_local", "low", "high", "why"),
)
STAGES = declare("training in stages", "copy", "examples", "steps", "batch_size", "loss")
declare("trials, shown", "refined")
_FIRST = (*_TABLES,)


def taken() -> dict[str, str]:
    """The names of all columns, each with a table that has it.

    >>> taken()["first_crossing"]
    'trials'
    """
    tables = [*(table for table in _TABLES if table not in _FIRST), *_FIRST]
    return {name: table for table in reversed(tables) for name in _TABLES[table]}


def check_hyperparameters(names: Iterable[str]) -> None:
    """Refuses names of hyperparameters that are those of columns, or no names.

    >>> check_hyperparameters(["learning_rate", "trial"])
    Traceback (most recent call last):
    ValueError: SearchSpace: 'trial' is already a column of the result tables (measurements). Give
    the hyperparameter another name.
    """
    names = list(names)
    columns = taken()
    for name in names:
        check_name("SearchSpace: the hyperparameter", name)
        found = columns.get(name)
        for pattern, table in columns.items():
            if pattern.startswith("*") and name.removesuffix(pattern[1:]) in {*names} - {name}:
                found = table
        if found is not None:
            raise ValueError(
                f"SearchSpace: {name!r} is already a column of the result tables ({found}). "
                "Give the hyperparameter another name."
            )


def check_name(what: str, name: object) -> None:
    """Refuses what tables, files and figures cannot carry as the name of a part of a study.

    >>> check_name("metric", "acc/top5")
    Traceback (most recent call last):
    ValueError: metric: got the name 'acc/top5', wanted one without '/', which parts a split from
    its metric in the tables. Rename it, to 'acc_top5' for example.
    """
    check_label(what, name)
    if "/" in str(name):
        raise ValueError(
            f"{what}: got the name {name!r}, wanted one without '/', which parts a split from its "
            f"metric in the tables. Rename it, to {str(name).strip('/').replace('/', '_')!r} for "
            "example."
        )


def check_label(what: str, name: object) -> None:
    """Refuses what tables and figures cannot show; "/" is allowed, in `mnist/fc_128`.

    >>> check_label("workload", "")
    Traceback (most recent call last):
    ValueError: workload: got the name '', wanted a word that can be printed.
    """
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ValueError(f"{what}: got the name {name!r}, wanted a word that can be printed.")
