"""Figure 4 of Shallue et al. (2019): does the optimizer matter?

    python -m experiments.figure04 --preset small
    python -m experiments.figure04 --archive FOLDER

The claim: momentum equals SGD at small batch sizes, and extends perfect scaling to larger ones.
"""

from __future__ import annotations

import pandas as pd

from experiments import harness, steps_panels
from experiments.harness import Figure, Studies
from experiments.steps_panels import Panel

_ALL = ("sgd", "momentum", "nesterov_momentum")
PANELS = (
    Panel("CNN", tuple(f"mnist/simple_cnn_base/{name}" for name in _ALL)),
    Panel("Shallow Transformer", tuple(f"lm1b/transformer_shallow/{name}" for name in _ALL)),
    Panel("ResNet", ("cifar_10/resnet_8/sgd", "cifar_10/resnet_8/nesterov_momentum")),
    Panel(
        "Perceptron",
        tuple(
            f"mnist/fc_128_128_128/{name}" for name in ("sgd, few", "momentum", "nesterov_momentum")
        ),
    ),
    Panel("Perceptron", tuple(f"digits/fc_64/{name}" for name in _ALL)),
    Panel("Transformer", ("lm1b/transformer_base/nesterov_momentum", "lm1b/transformer_base/adam")),
    Panel("LSTM", ("lm1b/lstm/nesterov_momentum", "lm1b/lstm/adam")),
)
NAMES = tuple(dict.fromkeys(name for panel in PANELS for name in panel.names))


def draw(studies: Studies, tuned: bool) -> dict[str, pd.DataFrame]:
    """Those panels of which there are two lines at least."""
    return steps_panels.compared(PANELS, studies, tuned, by="optimizer")


FIGURE = Figure(4, NAMES, draw, panels=tuple(panel.names for panel in PANELS))

if __name__ == "__main__":
    harness.main(FIGURE, __doc__)
