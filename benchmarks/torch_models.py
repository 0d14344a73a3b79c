"""The named models in plain PyTorch: layer by layer those of `batchscale.models`.

    python -m benchmarks.torch_models

checks that each has as many parameters as ours, and the same logits with the same weights.
"""

from __future__ import annotations

import importlib
import itertools
import math
from typing import Any

import numpy as np


def _optional(name: str) -> Any:
    """A module, or None: the peers that are JAX do without PyTorch."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


torch, nn, functional = map(_optional, ("torch", "torch.nn", "torch.nn.functional"))
_Module: Any = nn.Module if nn is not None else object

WORKLOADS = (
    "mnist/fc_128",
    "mnist/simple_cnn_base",
    "cifar10/resnet_8",
    "tiny_shakespeare/transformer_tiny",
    "tiny_shakespeare/lstm_tiny",
)


def get(workload: str) -> Any:
    """The model of a workload, with PyTorch's initial weights.

    Args:
      workload: `mnist/fc_...`, `mnist/simple_cnn_base`, or one of the small ones in `WORKLOADS`.

    Raises:
      ValueError: there is no such model here.
    """
    model = workload.partition("/")[2]
    if model.startswith("fc_"):
        return _Perceptron([int(width) for width in model.split("_")[1:]])
    made = {
        "simple_cnn_base": _CNN,
        "resnet_8": _ResNet8,
        "transformer_tiny": _Transformer,
        "lstm_tiny": _LSTM,
    }
    if model not in made:
        raise ValueError(f"workload: got {workload!r}, wanted mnist/fc_... or {WORKLOADS[1:]}.")
    return made[model]()


def data(workload: str) -> tuple[Any, Any]:
    """The training split: inputs as PyTorch wants them, unsigned bytes, and labels."""
    from batchscale import workloads

    train = workloads.get(workload).splits()["train"]
    if "tokens" in train:
        tokens = torch.from_numpy(train["tokens"].astype(np.int64))
        return tokens, tokens
    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(train["image"], -1, 1)))
    return images, torch.from_numpy(train["label"].astype(np.int64))


def loss(logits: Any, labels: Any) -> Any:
    """Mean cross-entropy; of tokens that are no padding."""
    if logits.ndim == 3:
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0)
    return functional.cross_entropy(logits, labels)


class _Perceptron(_Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        sizes = [784, *widths]
        hidden = [
            layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())
        ]
        self.all = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], 10))

    def forward(self, x: Any) -> Any:
        return self.all(x.float() / 255)


class _CNN(_Module):
    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Sequential(
            *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * 49, 1024), nn.ReLU(), nn.Dropout(0.4)),
            nn.Linear(1024, 10),
        )

    def forward(self, x: Any) -> Any:
        return self.all(x.float() / 255)


class _ResNet8(_Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first, self.second, self.shortcut = (nn.ModuleList() for _ in range(3))
        for filters, before in ((16, 16), (32, 16), (64, 32)):
            stride = filters // before
            # Flax pads an even image of stride 2 after its last pixel alone.
            self.first.append(nn.Conv2d(before, filters, 3, stride, padding=int(stride == 1)))
            self.second.append(nn.Conv2d(filters, filters, 3, padding=1))
            self.shortcut.append(
                nn.Conv2d(before, filters, 1, stride, bias=False) if stride > 1 else nn.Identity()
            )
        self.logits = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        x = self.stem(x.float() / 255)
        for first, second, shortcut in zip(self.first, self.second, self.shortcut, strict=True):
            active = functional.relu(x)
            x = shortcut(active) if first.stride[0] > 1 else x
            active = functional.pad(active, (0, 1, 0, 1)) if first.stride[0] > 1 else active
            x = x + second(functional.relu(first(active)))
        return self.logits(functional.relu(x).mean((2, 3)))


class _Block(_Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.feed_norm = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.wide = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.hidden, self.out = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        wide = self.wide(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = wide.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.out(functional.relu(self.hidden(self.feed_norm(x))))


class _Transformer(_Module):
    def __init__(self, vocabulary: int = 256, width: int = 64, length: int = 64) -> None:
        super().__init__()
        from batchscale.models import transformer

        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.blocks = nn.ModuleList([_Block(width, 4, 256) for _ in range(2)])
        self.norm = nn.LayerNorm(width, 1e-6)
        positions = torch.tensor(transformer._positions(length, width), dtype=torch.float32)
        self.register_buffer("positions", positions)

    def forward(self, tokens: Any) -> Any:
        x = self.embedding(functional.pad(tokens, (1, 0))[:, :-1])
        x = x * math.sqrt(x.shape[-1]) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embedding.weight.T


class _LSTM(_Module):
    def __init__(self, vocabulary: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 64)
        nn.init.normal_(self.embedding.weight, std=64**-0.5)
        self.cell = nn.LSTM(64, 128, batch_first=True, proj_size=64)
        # PyTorch has two biases a gate; ours is the first, and the forget gate's 1 the second.
        with torch.no_grad():
            self.cell.bias_ih_l0.zero_()
            self.cell.bias_hh_l0.zero_()
            self.cell.bias_hh_l0[128:256] = 1
        self.cell.bias_hh_l0.requires_grad_(False)
        self.logits = nn.Linear(64, vocabulary, bias=False)

    def forward(self, tokens: Any) -> Any:
        x = self.embedding(functional.pad(tokens, (1, 0))[:, :-1])
        return self.logits(self.cell(x)[0])


def copied(workload: str, params: Any) -> Any:
    """The model of a workload with the weights of ours.

    Args:
      workload: as `get` takes it.
      params: of `workloads.get(workload).init`.
    """
    model = get(workload)
    name = workload.partition("/")[2]
    pairs: list[tuple[Any, Any]] = []

    def layer(there: Any, here: Any) -> None:
        kernel = np.asarray(here["kernel"])
        pairs.append((there.weight, kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T))
        if "bias" in here:
            pairs.append((there.bias, here["bias"]))

    def norm(there: Any, here: Any) -> None:
        pairs.extend([(there.weight, here["scale"]), (there.bias, here["bias"])])

    if name.startswith("fc_") or name == "simple_cnn_base":
        kernels = [m for m in model.all if isinstance(m, nn.Linear | nn.Conv2d)]
        for there, here in zip(kernels, [params[k] for k in sorted(params)], strict=True):
            layer(there, here)
        if name == "simple_cnn_base":  # pixels are flattened before channels in ours
            kernel = np.asarray(params["Dense_0"]["kernel"]).reshape(7, 7, 64, -1)
            pairs.append((model.all[7].weight, kernel.transpose(3, 2, 0, 1).reshape(1024, -1)))
    elif name == "resnet_8":
        layer(model.stem, params["stem"])
        layer(model.logits, params["logits"])
        for block in range(3):
            layer(model.first[block], params[f"first_{block}"])
            layer(model.second[block], params[f"second_{block}"])
            if block:
                layer(model.shortcut[block], params[f"shortcut_{block}"])
    elif name == "transformer_tiny":
        pairs.append((model.embedding.weight, params["embedding"]))
        norm(model.norm, params["norm"])
        for number, block in enumerate(model.blocks):
            attention = params[f"attention_{number}"]
            norm(block.norm, params[f"attention_norm_{number}"])
            norm(block.feed_norm, params[f"feed_forward_norm_{number}"])
            layer(block.wide, attention["query_key_value"])
            layer(block.mix, attention["out"])
            layer(block.hidden, params[f"hidden_{number}"])
            layer(block.out, params[f"out_{number}"])
    else:
        cell = model.cell
        pairs += [(model.embedding.weight, params["embedding"])]
        pairs += [(cell.weight_ih_l0, params["into"].T), (cell.weight_hh_l0, params["again"].T)]
        pairs += [(cell.bias_ih_l0, params["bias"]), (cell.weight_hr_l0, params["out"].T)]
        layer(model.logits, params["logits"])
    with torch.no_grad():
        for there, here in pairs:
            there.copy_(torch.from_numpy(np.array(here)))
    return model


def check(workload: str) -> tuple[int, float]:
    """The parameters of both, and the largest difference of gradients with the same weights.

    Returns:
      The number of parameters, and the largest difference of the mean loss on 8 examples.

    Raises:
      ValueError: the numbers of parameters, or the losses, are not the same.
    """
    import jax

    from batchscale import models, workloads

    chosen = workloads.get(workload)
    params, state = jax.jit(chosen.init)(jax.random.key(0))
    model = copied(workload, params).eval()
    theirs = sum(p.numel() for p in model.parameters() if p.requires_grad)
    ours = models.parameter_count(params)
    batch = jax.tree.map(lambda x: x[:8], dict(chosen.splits()["train"]))
    total, count = chosen.metrics(params, state, chosen.prepare(batch, None))["loss"]
    inputs, labels = data(workload)
    with torch.no_grad():
        found = float(loss(model(inputs[:8]), labels[:8]))
    difference = abs(found - float(total) / float(count))
    if ours != theirs or difference > 1e-4:
        raise ValueError(
            f"{workload}: got {theirs} parameters in PyTorch, wanted {ours}; losses differ by "
            f"{difference:.2g}."
        )
    return ours, difference


if __name__ == "__main__":
    for each in WORKLOADS:
        print(each, *check(each))
