"""Figure 6 of Shallue et al. (2019): does the size of the data set matter?

    python -m experiments.figure06 --preset small
    python -m experiments.figure06 --archive FOLDER

Steps are divided by those at an anchor. The claim: size has no consistent effect.
"""

from __future__ import annotations

import pandas as pd

from experiments import harness, steps_panels
from experiments.harness import Figure, Studies
from experiments.steps_panels import Panel

_RESNET = "resnet_50/nesterov_momentum"
PANELS = (
    Panel(
        "Parts of a small data set",
        tuple(
            f"mnist_subsets/mnist_{n}/simple_cnn_base/nesterov_momentum"
            for n in (55_000, 27_500, 13_750, 6_875)
        ),
        anchor=2,
    ),
    Panel(
        "Parts of ImageNet",
        (
            f"imagenet/{_RESNET}",
            f"imagenet_subsets/imagenet_half_images/{_RESNET}",
            f"imagenet_subsets/imagenet_half_classes/{_RESNET}",
        ),
        anchor=64,
    ),
)
NAMES = tuple(name for panel in PANELS for name in panel.names)


def draw(studies: Studies, tuned: bool) -> dict[str, pd.DataFrame]:
    """Those panels of which there are two lines at least."""
    return steps_panels.compared(PANELS, studies, tuned, by="data")


FIGURE = Figure(6, NAMES, draw, panels=tuple(panel.names for panel in PANELS))

if __name__ == "__main__":
    harness.main(FIGURE, __doc__)
