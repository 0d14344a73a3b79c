"""What evaluation costs beside training: a small character Transformer, batch size 4.

    python -m benchmarks.evaluation

Two layers of width 64 over 64 characters that a random table of transitions makes, as plain JAX;
the goal is a validation loss, which no evaluation can be cut short for. Each way of `evaluate=` is
run in a process of its own, with programs that are compiled: the seconds that the run waited for
training and for evaluation. `without limits` is 5,000 sequences of train and the whole of test at
each doubling of the steps; `goal alone` is what the definition itself costs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import batchscale as bs

WAYS = {
    "without limits": bs.Evaluate(examples={"train": 5000}, share=None),
    "default": bs.Evaluate(),
    "goal alone": bs.Evaluate(splits=[]),
}
_WIDTH, _CONTEXT, _CHARACTERS, _LAYERS, _HEADS = 64, 64, 32, 2, 4


def sequences(count: int, seed: int) -> dict[str, np.ndarray]:
    """Characters of a Markov chain of order one."""
    table = np.random.default_rng(0).dirichlet(np.full(_CHARACTERS, 0.1), _CHARACTERS).cumsum(1)
    random = np.random.default_rng(seed)
    text = np.zeros((count, _CONTEXT + 1), np.int32)
    text[:, 0] = random.integers(0, _CHARACTERS, count)
    for place in range(_CONTEXT):
        drawn = random.uniform(size=(count, 1))
        text[:, place + 1] = (table[text[:, place]] < drawn).sum(1).clip(max=_CHARACTERS - 1)
    return {"input": text[:, :-1], "label": text[:, 1:]}


def transformer(train: int, validation: int, test: int) -> bs.Workload:
    """The workload."""
    import jax
    import jax.numpy as jnp
    import optax

    def init(key: Any) -> dict[str, Any]:
        keys = iter(jax.random.split(key, 3 + 4 * _LAYERS))

        def weights(*shape: int) -> Any:
            return jax.random.normal(next(keys), shape) / shape[0] ** 0.5

        blocks = [
            {
                "qkv": weights(_WIDTH, 3 * _WIDTH),
                "out": weights(_WIDTH, _WIDTH),
                "up": weights(_WIDTH, 4 * _WIDTH),
                "down": weights(4 * _WIDTH, _WIDTH),
            }
            for _ in range(_LAYERS)
        ]
        return {
            "embed": weights(_CHARACTERS, _WIDTH),
            "place": weights(_CONTEXT, _WIDTH),
            "head": weights(_WIDTH, _CHARACTERS),
            "blocks": blocks,
        }

    def norm(x: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)

    def loss(params: Any, batch: Any) -> Any:
        x = params["embed"][batch["input"]] + params["place"]
        mask = jnp.tril(jnp.ones((_CONTEXT, _CONTEXT), bool))
        for block in params["blocks"]:
            q, k, v = (
                part.reshape(*part.shape[:2], _HEADS, -1)
                for part in jnp.split(norm(x) @ block["qkv"], 3, -1)
            )
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
            shares = jax.nn.softmax(jnp.where(mask, scores, -1e9))
            x = x + jnp.einsum("bhqk,bkhd->bqhd", shares, v).reshape(x.shape) @ block["out"]
            x = x + jax.nn.gelu(norm(x) @ block["up"]) @ block["down"]
        logits = norm(x) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(-1)

    return bs.Workload.from_functions(
        init,
        loss,
        data={
            "train": sequences(train, 1),
            "validation": sequences(validation, 2),
            "test": sequences(test, 3),
        },
        name="characters",
    )


def study(way: str, *, trials: int, max_steps: int) -> bs.Study:
    """The study: every trial is trained for the whole budget."""
    return bs.Study(
        workload=transformer(5000, 250, 250),
        optimizer="adam",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-4, 1e-2)),
        batch_sizes=[4],
        goal=bs.Goal("validation/loss", 0.5),
        trials=trials,
        max_steps=max_steps,
        stop="budget",
        evaluate=WAYS[way],
    )


def child(way: str, trials: int, max_steps: int) -> None:
    """Prints the seconds of one way, as JSON; the first run compiles."""
    import warnings

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        some = study(way, trials=trials, max_steps=max_steps)
        some.run(f"{folder}/study", progress=False)
        made = json.loads(Path(folder, "study/provenance.json").read_text())["runs"][-1]["seconds"]
    estimate = some.estimate_seconds().drop(columns="batch_size").iloc[0].round(1).to_dict()
    print(json.dumps({"way": way, **made, "estimate": estimate}))


def main() -> None:
    """Runs every way and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--way", choices=WAYS, help="that alone, in this process")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/evaluation.json"))
    arguments = parser.parse_args()
    if arguments.way is not None:
        child(arguments.way, arguments.trials, arguments.max_steps)
        return
    rows = []
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.evaluation", "--way", way]
        command += ["--trials", str(arguments.trials), "--max-steps", str(arguments.max_steps)]
        found = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
        rows.append(json.loads(found.stdout.splitlines()[-1]))
    print("| evaluate | training, s | evaluation, s | estimated: training, goal, others, s |")
    print("|--|--|--|--|")
    for row in rows:
        estimate = row["estimate"]
        parts = [estimate[f"{name}_seconds"] for name in ("training", "goal", "other")]
        words = ", ".join(map(str, parts))
        print(f"| {row['way']} | {row['training']} | {row['evaluation']} | {words} |")
    arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
