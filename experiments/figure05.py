"""Figure 5 of Shallue et al. (2019): does the data set matter?

    python -m experiments.figure05 --preset small
    python -m experiments.figure05 --archive FOLDER

Steps are divided by those at an anchor. The claim: differences are small beside those of the model
and of the optimizer.
"""

from __future__ import annotations

import pandas as pd

from experiments import harness, steps_panels
from experiments.harness import Figure, Studies
from experiments.steps_panels import Panel

_CNN, _RESNET = ("simple_cnn_base/nesterov_momentum", "resnet_50/nesterov_momentum")
_TRANSFORMER = "transformer_base/nesterov_momentum"
PANELS = (
    Panel(
        "One CNN",
        (f"mnist/{_CNN}", f"fashion_mnist/{_CNN}", "digits/shuffled/nesterov_momentum"),
        anchor=2,
    ),
    Panel("One ResNet", (f"imagenet/{_RESNET}", f"open_images_v4/{_RESNET}"), anchor=128),
    Panel("One Transformer", (f"lm1b/{_TRANSFORMER}", f"common_crawl/{_TRANSFORMER}"), anchor=32),
)
NAMES = tuple(name for panel in PANELS for name in panel.names)


def draw(studies: Studies, tuned: bool) -> dict[str, pd.DataFrame]:
    """Those panels of which there are two lines at least."""
    return steps_panels.compared(PANELS, studies, tuned, by="data")


FIGURE = Figure(5, NAMES, draw, panels=tuple(panel.names for panel in PANELS))

if __name__ == "__main__":
    harness.main(FIGURE, __doc__)
