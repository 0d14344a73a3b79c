"""Figure 3 of Shallue et al. (2019): does the model matter?

    python -m experiments.figure03 --preset small
    python -m experiments.figure03 --archive FOLDER

Steps are divided by those at an anchor. The claim: the family of the model matters a lot; width and
depth have no consistent effect.
"""

from __future__ import annotations

import pandas as pd

from experiments import harness, steps_panels
from experiments.harness import Figure, Studies
from experiments.steps_panels import Panel

_FC = ("1024", *(f"{n}_{n}_{n}" for n in (128, 256, 512, 1024, 2048)))
_NESTEROV = "nesterov_momentum"
PANELS = (
    Panel(
        "Perceptron and CNN",
        ("mnist/fc_1024_1024_1024/sgd", "mnist/simple_cnn_base/sgd"),
        anchor=1,
        goals={"mnist/simple_cnn_base/sgd": (0.03,)},
    ),
    Panel(
        "ResNet and VGG",
        (f"imagenet/resnet_50/{_NESTEROV}", f"imagenet/vgg_11/{_NESTEROV}"),
        anchor=64,
        goals={f"imagenet/resnet_50/{_NESTEROV}": (0.35,)},
    ),
    Panel(
        "Transformer and LSTM",
        (f"lm1b/transformer_base/{_NESTEROV}", f"lm1b/lstm/{_NESTEROV}"),
        anchor=16,
    ),
    Panel("Sizes of a perceptron", tuple(f"mnist/fc_{n}/sgd" for n in _FC), anchor=2),
    Panel(
        "Widths of a CNN",
        tuple(f"mnist/simple_cnn_{width}/sgd" for width in ("base", "narrow", "wide")),
        anchor=2,
    ),
    Panel(
        "Sizes of a Transformer",
        tuple(
            f"lm1b/transformer_{size}/{_NESTEROV}"
            for size in ("wide", "base", "shallow", "narrow_and_shallow")
        ),
        anchor=16,
        goals={f"lm1b/transformer_{size}/{_NESTEROV}": (4.2,) for size in ("base", "shallow")},
    ),
)
NAMES = tuple(dict.fromkeys(name for panel in PANELS for name in panel.names))


def draw(studies: Studies, tuned: bool) -> dict[str, pd.DataFrame]:
    """Those panels of which there are two lines at least."""
    return steps_panels.compared(PANELS, studies, tuned)


FIGURE = Figure(3, NAMES, draw, panels=tuple(panel.names for panel in PANELS))

if __name__ == "__main__":
    harness.main(FIGURE, __doc__)
