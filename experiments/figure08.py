"""Figure 8 of Shallue et al. (2019): the best effective learning rate against batch size.

    python -m experiments.figure08 --preset small
    python -m experiments.figure08 --archive FOLDER

Between the rules that it might follow, from the smallest batch size on: linear, and square root.
The claim: neither holds reliably. Stars are the paper's, of single best trials; bars are the rates
that are as good, which the paper does not have.
"""

from __future__ import annotations

import pandas as pd

import batchscale as bs
from experiments import figure01, harness
from experiments.harness import Figure, Studies, grid, present

NAMES = (*figure01.NAMES, "mnist/fc_128_128_128/sgd", "digits/fc_64/sgd")
# The paper's notebook has this goal here, and 0.1 in Figure 1.
GOALS = {"fashion_mnist/simple_cnn_base/nesterov_momentum": bs.Goal("validation/error", 0.3)}


def draw(studies: Studies, tuned: bool) -> dict[str, pd.DataFrame]:
    """A panel for each study that there is."""
    del tuned
    found = present(studies, NAMES)
    tables, rules, axes = [], [], grid(len(found))
    for ax, one in zip(axes, found, strict=True):
        title = f"{one.title}, {one.words.optimizer}"
        bs.plots.learning_rates(one.result, ax=ax, title=title)
        tables.append(one.result.learning_rates().assign(panel=title))
        rules.append({"panel": title, **_rule(tables[-1])})
    harness.one_legend(axes)
    rates = pd.concat(tables, ignore_index=True)
    return {"learning_rates": rates, "rules": pd.DataFrame(rules)}


def _rule(rates: pd.DataFrame) -> dict[str, float]:
    """The power of the batch size that the best rate grows as, up to which; see `scaling.rules`."""
    try:
        found = bs.scaling.rules(rates)
    except ValueError:  # of too few batch sizes
        return {}
    exponent, knee = found.exponent_interval, found.knee_interval
    return {
        "exponent": found.exponent,
        "exponent_low": exponent.low,
        "exponent_high": exponent.high,
        "knee": found.knee,
        "knee_low": knee.low,
        "knee_high": knee.high,
    }


FIGURE = Figure(8, NAMES, draw, tuned=False, goals=GOALS, usable=harness.trained_on)

if __name__ == "__main__":
    harness.main(FIGURE, __doc__)
