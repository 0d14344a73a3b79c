"""How often the audit of a careful study raises an alarm, by simulation.

    python -m validation.false_alarms

Careful studies of several kinds are simulated (see `validation.simulation`), confirmed under fresh
seeds, and audited. Printed are the share of the studies with any alarm, and which checks raised
them. Two checks have nothing to find in a simulation, and cannot raise any: whether the study is
finished, and whether the model depends on the batch.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
from pathlib import Path

from batchscale.audit import audit
from validation.simulation import KINDS, Careful, confirm, simulate


def main() -> None:
    """Simulates every kind and writes what was found as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--studies", type=int, default=100, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("validation/results/false_alarms.json"))
    arguments = parser.parse_args()
    rows = []
    for kind, study in KINDS.items():
        raised: collections.Counter[str] = collections.Counter()
        studies = 0
        for seed in range(arguments.seed, arguments.seed + arguments.studies):
            tables = simulate(study, seed)
            found = audit(
                tables.measurements,
                tables.trials,
                tables.steps,
                tables.goal,
                spaces=tables.spaces,
                max_steps=tables.max_steps,
                batch_dependent=False,
                confirmation=confirm(study, tables, seed),
            )
            raised.update(check.name for check in found.alarms)
            studies += bool(found.alarms)
        rows.append({"kind": kind, "alarmed": studies / arguments.studies, "by": dict(raised)})
        print(rows[-1], flush=True)
    # None of so many: 0.05 is the chance of that at the rate (1 - 0.05^(1/n)).
    simulated = len(rows) * arguments.studies
    if not any(row["alarmed"] for row in rows):
        most = 1 - 0.05 ** (1 / simulated)
        print(f"none of {simulated} studies: a rate below {most:.2%}, at a confidence of 95%")
    described = {kind: _words(study) for kind, study in KINDS.items()}
    about = {"studies": arguments.studies, "seed": arguments.seed, "kinds": described}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


def _value(value: object) -> object:
    return value.__name__ if isinstance(value, type) else value


def _words(study: Careful) -> str:
    """What differs from the default, in words."""
    fields = [f for f in dataclasses.fields(study) if f.name not in ("space", "max_steps")]
    usual = Careful()
    return ", ".join(
        f"{f.name}={_value(getattr(study, f.name))}"
        for f in fields
        if getattr(study, f.name) != getattr(usual, f.name)
    )


if __name__ == "__main__":
    main()
