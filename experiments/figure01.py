"""Figure 1 of Shallue et al. (2019): steps to a goal against batch size, a panel a workload.

    python -m experiments.figure01 --preset small
    python -m experiments.figure01 --archive FOLDER

The claim: every workload shows perfect scaling, then diminishing returns, then a plateau.
"""

from __future__ import annotations

import pandas as pd

from experiments import harness, steps_panels
from experiments.harness import Figure, Studies
from experiments.steps_panels import Panel

NAMES = (
    "mnist/simple_cnn_base/nesterov_momentum",
    "fashion_mnist/simple_cnn_base/nesterov_momentum",
    "cifar_10/resnet_8/nesterov_momentum",
    "imagenet/resnet_50/nesterov_momentum",
    "open_images_v4/resnet_50/nesterov_momentum",
    "lm1b/transformer_base/nesterov_momentum",
    "common_crawl/transformer_base/nesterov_momentum",
    "imagenet/vgg_11/nesterov_momentum",
    "lm1b/lstm/nesterov_momentum",
)


def draw(studies: Studies, tuned: bool) -> dict[str, pd.DataFrame]:
    """A panel for each study that there is."""
    return steps_panels.draw([Panel("", (name,)) for name in NAMES], studies, tuned)


FIGURE = Figure(1, NAMES, draw)

if __name__ == "__main__":
    harness.main(FIGURE, __doc__)
