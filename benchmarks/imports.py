"""What importing costs, in seconds of CPU time: the median of fresh processes.

    python -m benchmarks.imports

`base` is what every study needs of others: jax, flax, optax and pandas. `names` is the library with
its public names used once; figures, `scipy.stats` and tensorflow-datasets come when they are used.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

CASES = {
    "base": "import jax, flax.linen, optax, pandas",
    "batchscale": "import batchscale",
    "names": "import batchscale as bs; bs.Study, bs.Workload, bs.SearchSpace, bs.Goal, bs.load",
    "figures": "import batchscale as bs; bs.Study, bs.plots",
}


def seconds(code: str) -> float:
    """CPU seconds of a process that runs this."""
    code += "; import time; print(time.process_time())"
    found = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    return float(found.stdout)


def main() -> None:
    """Measures in turns, prints the table, and writes it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/imports.json"))
    arguments = parser.parse_args()
    times = [{name: seconds(code) for name, code in CASES.items()} for _ in range(arguments.rounds)]
    median = {name: round(statistics.median(row[name] for row in times), 2) for name in CASES}
    print("| import | CPU seconds |\n|--|--|")
    for name, value in median.items():
        print(f"| {name} | {value:.2f} |")
    from batchscale.records import provenance

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"median": median, "machine": provenance()}, indent=1))


if __name__ == "__main__":
    main()
