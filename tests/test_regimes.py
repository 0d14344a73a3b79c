"""The picture of five families: what is drawn is what was published, in units of its own curve."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments import regimes


@pytest.fixture
def folder(tmp_path):
    sizes = np.array([4, 16, 64, 256])
    for place, name in enumerate(regimes.FAMILIES):
        critical, fewest = 20.0 * 2**place, 30.0 * 3**place
        steps = fewest * (1 + critical / sizes)
        table = pd.DataFrame(
            {"batch_size": sizes, "steps": steps, "low": steps / 1.1, "high": steps * 1.1}
        )
        stem = tmp_path / name.replace("/", "_")
        table.to_csv(stem.with_suffix(".csv"), index=False)
        about = {"b_crit": critical if place != 1 else None, "s_min": fewest}
        stem.with_suffix(".json").write_text(json.dumps(about))
    return tmp_path


def test_all_families_lie_on_one_curve_where_they_do(folder):
    found = {name: regimes.read(name, folder) for name in regimes.FAMILIES}
    ax = regimes.draw(found)
    drawn = [container[0].get_xydata() for container in ax.containers]
    assert len(drawn) == len(found) - 1  # one has no critical batch size
    for points in drawn:
        x, y = np.asarray(points, float).T
        np.testing.assert_allclose(y, 1 + 1 / x)
    labels = (
        [text.get_text() for text in ax.figure.legends[0].get_texts()] if ax.figure.legends else []
    )
    labels = labels or [text.get_text() for text in ax.get_legend().get_texts()]
    assert "perceptron, digits: 20" in labels
    assert not any("CNN, digits" in label for label in labels)


def test_what_was_not_published_is_not_there(tmp_path):
    assert regimes.read("digits/fc_64", tmp_path) is None
