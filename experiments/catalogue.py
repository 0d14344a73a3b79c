"""What is trained for each study of the paper, by preset; figures that share a study run it once.

Figures ask for studies by the paper's names, `dataset/model/optimizer`, which are the folders of
its archive. A preset says what is trained for each: of `paper` the same; of `mnist` and `cifar` the
same with fewer trials and batch sizes; of `text` and `small` a stand-in, whose own name is what the
figure shows. What a preset has nothing for is left out of its figures. Goals, budgets and spaces
that are not the paper's are choices, made so that every batch size reaches the goal with its best
trials away from the edges.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

import batchscale as bs
from batchscale import models
from batchscale.workloads.paper import ALL
from experiments import mnist


@dataclasses.dataclass(frozen=True)
class Words:
    """What figures call a study.

    Attributes:
      model: what is trained.
      data: on what.
      optimizer: by which update.

    >>> one = Words("CNN", "digits", "SGD")
    >>> one.title, one.label("data"), one.label("optimizer")
    ('CNN on digits', 'digits', 'SGD')
    """

    model: str
    data: str
    optimizer: str

    @property
    def title(self) -> str:
        """Of a panel of its own."""
        return f"{self.model} on {self.data}"

    def label(self, by: Part) -> str:
        """In the legend of a panel whose lines differ in one part."""
        return getattr(self, by)


Part = Literal["model", "data", "optimizer"]
_OPTIMIZERS = {
    "sgd": "SGD",
    "momentum": "momentum",
    "nesterov": "Nesterov momentum",
    "nesterov_momentum": "Nesterov momentum",
    "adam": "Adam",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A study of a preset.

    Attributes:
      model: what figures call it.
      data: what figures call what it is trained on.
      arguments: those of `bs.Study`; `workload` is made when it is called.
      goals: nearby goals, for the figure that asks whether the choice matters; besides its own.
      place: its folder's name, where one study stands for several of the paper's.
    """

    model: str
    data: str
    arguments: Mapping[str, Any]
    goals: tuple[float, ...] = ()
    place: str = ""

    @property
    def words(self) -> Words:
        """What figures call it."""
        return Words(self.model, self.data, _OPTIMIZERS[self.arguments["optimizer"]])

    def study(self, *, trials: int | None = None, seed: int = 0) -> bs.Study:
        """The study itself.

        Args:
          trials: feasible ones at every batch size, at most; the preset's if not given.
          seed: of all of it.
        """
        given = {**self.arguments, "workload": self.arguments["workload"](), "seed": seed}
        if trials is not None:
            given["trials"] = min(trials, given["trials"])
        return bs.Study(**given)

    def up_to(self, largest: int | None) -> Entry:
        """Without the batch sizes above one, nor the full batch; all of them if None.

        >>> one = Entry("CNN", "digits", {"batch_sizes": (4, 16, 64, "full")})
        >>> one.up_to(16).arguments["batch_sizes"], one.up_to(None) == one
        ((4, 16), True)
        """
        if largest is None:
            return self
        sizes = [size for size in self.arguments["batch_sizes"] if size != "full"]
        kept = tuple(size for size in sizes if size <= largest)
        return dataclasses.replace(self, arguments={**self.arguments, "batch_sizes": kept})


Preset = Mapping[str, Entry]


def _steps(steps: int, epochs: float, examples: int, batch_size: int) -> int:
    """A budget of so many steps, and of so many epochs where these are more."""
    return max(steps, round(epochs * examples / batch_size))


def _named(workload: str) -> Callable[[], bs.Workload]:
    return functools.partial(bs.workloads.get, workload)


# Digits and tiny Shakespeare: seconds to a minute a study on two cores.
_SIZES = (4, 16, 64, 256)


@functools.cache
def _digits() -> Mapping[str, Mapping[str, np.ndarray]]:
    return bs.datasets.load("digits")


def _digits_cnn(filters: int, *, shuffled: bool = False) -> bs.Workload:
    """A convolutional network for 8x8 images; `shuffled`: their pixels are, in one fixed order."""

    def split(fields: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        images = np.asarray(fields["image"])
        if shuffled:
            order = np.random.default_rng(0).permutation(64)
            images = images.reshape(len(images), 64)[:, order].reshape(images.shape)
        return images, np.asarray(fields["label"])

    data = {name: split(fields) for name, fields in _digits().items()}
    module = models.SimpleCNN((filters, 2 * filters), 8 * filters, 10)
    name = f"{'shuffled digits' if shuffled else 'digits'}/cnn_{filters}_{2 * filters}"
    return bs.Workload.from_flax(module, data, name=name, scale=16.0)


def _digits_part(examples: int) -> bs.Workload:
    """The perceptron on the first training examples of digits."""
    splits = {name: dict(fields) for name, fields in _digits().items()}
    splits["train"] = {field: x[:examples] for field, x in splits["train"].items()}
    workload = bs.workloads.get("digits/fc_64", data=splits)
    return dataclasses.replace(workload, name=f"digits_{examples}/fc_64")


def _text(model: str, sequences: int = 96) -> bs.Workload:
    """A tiny model of text, evaluated on so many sequences of the validation split."""
    splits = {name: dict(fields) for name, fields in bs.datasets.load("tiny_shakespeare").items()}
    validation = {field: x[:sequences] for field, x in splits["validation"].items()}
    data = {"train": splits["train"], "validation": validation}
    workload = bs.workloads.get(f"tiny_shakespeare/{model}", data=data)
    return dataclasses.replace(workload, name=f"tiny_shakespeare ({sequences} sequences)/{model}")


def _tuned(low: float, high: float) -> bs.SearchSpace:
    return bs.SearchSpace(
        learning_rate=bs.LogUniform(low, high), momentum=bs.ReverseLogUniform(0.5, 0.99)
    )


def _perceptron(
    widths: str, optimizer: str, *, data: str = "digits", goals: Any = (), **others: Any
) -> Entry:
    plain = bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 10))
    arguments = {
        "workload": _named(f"digits/fc_{widths}"),
        "optimizer": optimizer,
        "space": plain if optimizer == "sgd" else _tuned(1e-3, 10),
        "batch_sizes": (1, *_SIZES, 1024),
        "goal": bs.Goal("validation/error", 0.05),
        "trials": 12,
        "max_steps": 10_000,
        "stop": 3.0,
        "evaluation_spacing": 0.1,
    }
    name = f"Perceptron {widths.replace('_', ', ')}"
    return Entry(name, data, {**arguments, **others}, goals)


def _cnn(optimizer: str, *, filters: int = 8, shuffled: bool = False) -> Entry:
    plain = bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 3))
    arguments = {
        "workload": functools.partial(_digits_cnn, filters, shuffled=shuffled),
        "optimizer": optimizer,
        "space": plain if optimizer == "sgd" else _tuned(1e-3, 3),
        "batch_sizes": (16, 64, 256),
        "goal": bs.Goal("validation/error", 0.12),
        "trials": 6,
        "max_steps": 4_000,
        "stop": 2.0,
        "evaluation_spacing": 0.1,
    }
    name = f"CNN {filters}, {2 * filters}"
    return Entry(name, "shuffled digits" if shuffled else "digits", arguments)


def _tiny_text(model: str, name: str) -> Entry:
    arguments = {
        "workload": functools.partial(_text, model, 16),
        "optimizer": "nesterov",
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(0.03, 0.6), momentum=0.9),
        "batch_sizes": (1, 4, 8),
        "goal": bs.Goal("validation/loss", 3.0),
        "trials": 4,
        "max_steps": 1_500,
        "evaluation_spacing": 0.1,
    }
    return Entry(name, "tiny Shakespeare", arguments)


def _small() -> Preset:
    smoothed = bs.SearchSpace(
        learning_rate=bs.LogUniform(1e-2, 10), label_smoothing=bs.Choice([0, 0.01, 0.1])
    )
    most = (*_SIZES, 1024)
    whole = {
        **{"stop": "budget", "curves": "exact", "trials": 24, "batch_sizes": most},
        "max_steps": functools.partial(_steps, 1000, 30, 1100),
    }
    sgd = dataclasses.replace(_perceptron("64", "sgd"), place="digits/fc_64/sgd")
    at_64 = {**whole, "batch_sizes": (64,)}
    perceptron = dataclasses.replace(
        _perceptron("64", "nesterov", goals=(0.06, 0.08, 0.1), **whole),
        place="digits/fc_64/nesterov_momentum",
    )
    subsets = {
        f"mnist_subsets/mnist_{paper}/simple_cnn_base/nesterov_momentum": _perceptron(
            "64",
            "nesterov",
            data=f"{here:,} digits",
            workload=functools.partial(_digits_part, here),
            batch_sizes=(1, *_SIZES),
            goal=bs.Goal("validation/error", 0.08),
        )
        for paper, here in ((55_000, 1_100), (27_500, 550), (13_750, 275))
    }
    return {
        "mnist/simple_cnn_base/nesterov_momentum": _cnn("nesterov"),
        "mnist/simple_cnn_base/sgd": _cnn("sgd"),
        "mnist/simple_cnn_narrow/sgd": _cnn("sgd", filters=4),
        "digits/shuffled/nesterov_momentum": _cnn("nesterov", shuffled=True),
        "mnist/fc_1024_1024_1024/sgd": _perceptron("64_64_64", "sgd", batch_sizes=most),
        "mnist/fc_1024/sgd": sgd,
        "mnist/fc_128_128_128/sgd": _perceptron("16_16_16", "sgd", batch_sizes=most),
        "cifar_10/resnet_8/nesterov_momentum": perceptron,
        "digits/fc_64/nesterov_momentum": perceptron,
        "digits/fc_64/sgd": sgd,
        "digits/fc_64/momentum": _perceptron("64", "momentum"),
        "digits/smoothed/sgd": _perceptron(
            "64", "sgd", **{**whole, "space": smoothed, "trials": 48}
        ),
        "digits/fc_8/nesterov_momentum": _perceptron("8", "nesterov", **at_64),
        "digits/fc_16/nesterov_momentum": _perceptron("16", "nesterov", **at_64),
        "digits/fc_64_64_64/nesterov_momentum": _perceptron("64_64_64", "nesterov", **at_64),
        "lm1b/transformer_base/nesterov_momentum": _tiny_text("transformer_tiny", "Transformer"),
        "lm1b/lstm/nesterov_momentum": _tiny_text("lstm_tiny", "LSTM"),
        **subsets,
    }


# MNIST, Fashion-MNIST: minutes on a GPU, up to hours on a CPU.


def _mnist_fc(
    widths: str,
    optimizer: str = "sgd",
    *,
    examples: int = 55_000,
    goals: Any = (),
    **others: Any,
) -> Entry:
    plain = bs.SearchSpace(learning_rate=mnist.rates)
    arguments = {
        "workload": _named(f"mnist{'' if examples == 55_000 else f'_{examples}'}/fc_{widths}"),
        "optimizer": optimizer,
        "space": plain if optimizer == "sgd" else _tuned(1e-3, 3),
        "batch_sizes": (*bs.powers_of_two(1, 8192), "full"),
        "goal": bs.Goal("validation/error", 0.03),
        "trials": 64,
        "max_steps": 200_000,
        "stop": 2.0,
    }
    data = "MNIST" if examples == 55_000 else f"{examples:,} of MNIST"
    return Entry(f"Perceptron {widths.replace('_', ', ')}", data, {**arguments, **others}, goals)


def _image_cnn(data_set: str, name: str, goal: float) -> Entry:
    arguments = {
        "workload": _named(f"{data_set}/simple_cnn_base"),
        "optimizer": "nesterov",
        "space": _tuned(1e-3, 1),
        "batch_sizes": (8, 32, 128, 512, 2048),
        "goal": bs.Goal("validation/error", goal),
        "trials": 24,
        "max_steps": 50_000,
    }
    return Entry("Simple CNN", name, arguments)


def _mnist() -> Preset:
    few = {"batch_sizes": (*(4**n for n in range(1, 7)),), "trials": 32}
    subsets = {
        f"mnist_subsets/mnist_{n}/simple_cnn_base/nesterov_momentum": _mnist_fc(
            "128_128_128", examples=n, goal=bs.Goal("validation/error", 0.05), **few
        )
        for n in (55_000, 27_500, 13_750, 6_875)
    }
    budget = {
        **{"stop": "budget", "curves": "exact", "trials": 24, "batch_sizes": (16, 64, 256, 1024)},
        "max_steps": functools.partial(_steps, 3000, 10, 55_000),
    }
    widths = "128_128_128"
    return {
        "mnist/fc_128_128_128/sgd": _mnist_fc(
            widths, goals=(0.035, 0.04, 0.05), curves="exact", stop=3.0
        ),
        "mnist/fc_1024/sgd": _mnist_fc("1024"),
        "mnist/fc_256_256_256/sgd": _mnist_fc("256_256_256"),
        "mnist/fc_128_128_128/sgd, few": _mnist_fc(widths, **few),
        "mnist/fc_128_128_128/momentum": _mnist_fc(widths, "momentum", **few),
        "mnist/fc_128_128_128/nesterov_momentum": _mnist_fc(widths, "nesterov", **few),
        "mnist/fc_128_128_128/nesterov_momentum, budget": _mnist_fc(widths, "nesterov", **budget),
        "mnist/simple_cnn_base/nesterov_momentum": _image_cnn("mnist", "MNIST", 0.01),
        "fashion_mnist/simple_cnn_base/nesterov_momentum": _image_cnn(
            "fashion_mnist", "Fashion-MNIST", 0.1
        ),
        **subsets,
    }


def _cifar() -> Preset:
    def resnet(optimizer: str) -> Entry:
        plain = bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 3))
        arguments = {
            "workload": _named("cifar10/resnet_8"),
            "optimizer": optimizer,
            "space": plain if optimizer == "sgd" else _tuned(1e-3, 0.3),
            "batch_sizes": (16, 64, 256, 1024),
            "goal": bs.Goal("validation/error", 0.3),
            "trials": 8,
            "max_steps": 20_000,
        }
        return Entry("ResNet-8", "CIFAR-10", arguments)

    return {
        "cifar_10/resnet_8/nesterov_momentum": resnet("nesterov"),
        "cifar_10/resnet_8/sgd": resnet("sgd"),
    }


def _texts() -> Preset:
    adam = bs.SearchSpace(learning_rate=bs.LogUniform(3e-4, 3e-2), b1=0.9, b2=0.999)

    def entry(model: str, name: str, optimizer: str) -> Entry:
        arguments = {
            "workload": functools.partial(_text, model),
            "optimizer": optimizer,
            "space": adam if optimizer == "adam" else _tuned(1e-3, 3),
            "batch_sizes": (4, 16, 64, 256, 1024),
            "goal": bs.Goal("validation/loss", 2.4),
            "trials": 12,
            "max_steps": 5_000,
        }
        return Entry(name, "tiny Shakespeare", arguments)

    return {
        "lm1b/transformer_base/nesterov_momentum": entry(
            "transformer_tiny", "Transformer", "momentum"
        ),
        "lm1b/lstm/nesterov_momentum": entry("lstm_tiny", "LSTM", "momentum"),
        "lm1b/transformer_base/adam": entry("transformer_tiny", "Transformer", "adam"),
        "lm1b/lstm/adam": entry("lstm_tiny", "LSTM", "adam"),
    }


GOALS = {
    "mnist/simple_cnn_base/nesterov_momentum": (0.008, 0.010, 0.012, 0.014, 0.016),
    "lm1b/transformer_base/nesterov_momentum": (3.80, 3.85, 3.90, 3.95, 4.00, 4.05),
    "imagenet/resnet_50/nesterov_momentum": (0.25, 0.27, 0.29, 0.31),
}
"""The nearby goals of the paper's figure 2."""
# Passes over each data set that a trial may make; the paper's budgets are not known.
_EPOCHS = {"imagenet": 120.0, "lm1b": 5.0, "common_crawl": 0.01, "cifar_10": 400.0}
_MODELS = {
    "simple_cnn_base": "Simple CNN",
    "simple_cnn_narrow": "Simple CNN, narrow",
    "simple_cnn_wide": "Simple CNN, wide",
    "resnet_8": "ResNet-8",
    "resnet_50": "ResNet-50",
    "vgg_11": "VGG-11",
    "lstm": "LSTM",
    "transformer_base": "Transformer",
    "transformer_shallow": "Transformer, shallow",
    "transformer_narrow_and_shallow": "Transformer, narrow and shallow",
    "transformer_wide": "Transformer, wide",
}
_SETS = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar_10": "CIFAR-10",
    "imagenet": "ImageNet",
    "open_images_v4": "Open Images",
    "lm1b": "LM1B",
    "common_crawl": "Common Crawl",
}
_ROOTS = {"mnist_": "mnist_subsets/", "imagenet_half": "imagenet_subsets/"}


def archive_name(data_set: str, model: str, optimizer: str) -> str:
    """The folder of a study in the paper's archive.

    >>> archive_name("mnist_6875", "simple_cnn_base", "nesterov")
    'mnist_subsets/mnist_6875/simple_cnn_base/nesterov_momentum'
    """
    root = next((root for start, root in _ROOTS.items() if data_set.startswith(start)), "")
    called = "nesterov_momentum" if optimizer == "nesterov" else optimizer
    return f"{root}{data_set}/{model}/{called}"


def trials_of_paper(name: str) -> int:
    """How many complete trials of every batch size the paper's figures compare.

    >>> trials_of_paper("mnist/fc_1024/sgd"), trials_of_paper("lm1b/lstm/nesterov_momentum")
    (100, 50)
    """
    return _paper()[name].arguments["trials"]


def words(name: str) -> Words:
    """What the paper's studies are called.

    >>> words("mnist/fc_1024/sgd")
    Words(model='FC-1024', data='MNIST', optimizer='SGD')
    """
    data_set, model, optimizer = name.split("/")[-3:]
    called = _MODELS.get(model, model.replace("fc_", "FC-").replace("_", "-"))
    data = _SETS.get(data_set, data_set.replace("_", " "))
    return Words(called, data, _OPTIMIZERS[optimizer])


def _paper() -> Preset:
    found = {}
    for one in ALL:
        name = archive_name(one.data_set, one.model, one.optimizer)
        root = one.data_set.removeprefix("solution_quality/")
        epochs = next((n for start, n in _EPOCHS.items() if root.startswith(start)), 200.0)
        arguments = {
            **{"optimizer": one.optimizer, "space": one.space, "goal": one.goal},
            **{"batch_sizes": one.batch_sizes, "trials": one.trials, "schedule": one.schedule},
            "workload": _named(one.workload),
            "max_epochs": epochs,
            **{"stop": "budget", "curves": "exact"},  # the paper's rule
        }
        called = words(name)
        found[name] = Entry(called.model, called.data, arguments, GOALS.get(name, ()))
    return found


PRESETS: Mapping[str, Callable[[], Preset]] = {
    "small": _small,
    "mnist": _mnist,
    "cifar": _cifar,
    "text": _texts,
    "paper": _paper,
}


def entries(preset: str, names: Sequence[str]) -> dict[str, Entry]:
    """Those of the studies that a preset trains something for.

    >>> list(entries("cifar", ["cifar_10/resnet_8/sgd", "lm1b/lstm/nesterov_momentum"]))
    ['cifar_10/resnet_8/sgd']
    """
    known = PRESETS[preset]()
    return {name: known[name] for name in names if name in known}
