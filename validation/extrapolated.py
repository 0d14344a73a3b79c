"""Families of studies of a known power law, whose larger members are predicted."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from batchscale.scaling import power_law

EXPONENT, FACTORS = 0.5, (2, 4)
STUDIES, DEVIATIONS, SCATTERS = (3, 4, 6), (0.06, 0.15), (0.0, 0.1, 0.3)


def rows(families: int, seed: int) -> Iterable[dict[str, Any]]:
    """Of 3 to 6 sizes, each twice the one before: the shares of the intervals that hold the truth.

    `scatter` is that of true critical batch sizes about the law, `deviation` that of a study's
    estimate; predicted is the true one of a study beyond the largest.
    """
    for studies, deviation, scatter in itertools.product(STUDIES, DEVIATIONS, SCATTERS):
        random = np.random.default_rng(
            [seed, studies, round(1000 * deviation), round(10 * scatter)]
        )
        x = 1e3 * 2.0 ** np.arange(studies)
        law, held = 0, dict.fromkeys(FACTORS, 0)
        widths = []
        for _ in range(families):
            truth = np.log(30) + EXPONENT * np.log(x / 1e3) + scatter * random.normal(size=studies)
            seen = np.exp(truth + deviation * random.normal(size=studies))
            wide = np.exp(norm.ppf(0.95) * deviation)
            table = pd.DataFrame(
                {"x": x, "b_crit": seen, "b_crit_low": seen / wide, "b_crit_high": seen * wide}
            )
            found = power_law(table, "x", reach=max(FACTORS))
            law += found.exponent_interval.low <= EXPONENT <= found.exponent_interval.high
            for factor in FACTORS:
                there = x[-1] * factor
                true = np.log(30) + EXPONENT * np.log(there / 1e3) + scatter * random.normal()
                low, high = found.at(there).interval
                held[factor] += low <= np.exp(true) <= high
            widths.append(np.ptp(np.log(found.at(x[-1] * FACTORS[-1]).interval)))
        yield {
            "studies": studies,
            "deviation": deviation,
            "scatter": scatter,
            "exponent held": round(float(law / families), 3),
            **{
                f"held {factor} times beyond": round(float(held[factor] / families), 3)
                for factor in held
            },
            "high over low, farthest": round(float(np.exp(np.median(widths))), 2),
        }
