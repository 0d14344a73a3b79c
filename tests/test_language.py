"""Language models and their workloads: causality, padding, counts, and independent values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchscale as bs
from batchscale import datasets, models, workloads
from batchscale.datasets import text
from batchscale.workloads import language

SMALL = {
    "transformer": models.Transformer(vocabulary=11, layers=2, width=8, heads=2, hidden=16),
    "lstm": models.LSTM(vocabulary=11, embedding=6, units=10, projection=4),
}


def sequences(examples=5, length=7, vocabulary=11, seed=0):
    return np.random.default_rng(seed).integers(1, vocabulary, (examples, length))


def initialised(module, tokens):
    return jax.jit(lambda key: module.init(key, tokens, train=False))(jax.random.key(0))


@pytest.mark.parametrize("name", SMALL)
def test_logits_hang_on_the_tokens_before_theirs_alone(name):
    module, tokens = SMALL[name], jnp.asarray(sequences())
    params = initialised(module, tokens)
    logits = jax.jit(lambda tokens: module.apply(params, tokens, train=False))
    before = logits(tokens)
    for place in range(tokens.shape[1]):
        other = tokens.at[:, place].set(1 + tokens[:, place] % 10)
        changed = np.abs(np.asarray(logits(other) - before)).max((0, 2))
        # Those at a place predict the token there: it is no input of theirs.
        assert (changed[: place + 1] == 0).all()
        assert (changed[place + 1 :] > 1e-4).all()


def test_the_transformer_is_that_of_plain_numpy():
    module, tokens = SMALL["transformer"], sequences(3)
    params = initialised(module, jnp.asarray(tokens))
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])

    def normal(x, of):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-6) * of["scale"] + of["bias"]

    before = np.concatenate([np.zeros((3, 1), int), tokens[:, :-1]], 1)
    x = p["embedding"][before] * math.sqrt(8)
    for t in range(7):
        for i in range(4):
            angle = t / 10_000 ** (i / 3)
            x[:, t, i] += math.sin(angle)
            x[:, t, 4 + i] += math.cos(angle)
    for layer in range(2):
        of = p[f"attention_{layer}"]
        mixed = normal(x, p[f"attention_norm_{layer}"]) @ of["query_key_value"]["kernel"]
        query, key, value = np.split(mixed, 3, -1)
        out = np.zeros_like(x)
        for head in range(2):
            s = slice(4 * head, 4 * head + 4)
            for t in range(7):
                scores = np.einsum("bs,bks->bk", query[:, t, s], key[:, : t + 1, s]) / 2
                weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
                out[:, t, s] = np.einsum("bk,bks->bs", weights, value[:, : t + 1, s])
        x = x + out @ of["out"]["kernel"]
        y = normal(x, p[f"feed_forward_norm_{layer}"])
        y = np.maximum(y @ p[f"hidden_{layer}"]["kernel"] + p[f"hidden_{layer}"]["bias"], 0)
        x = x + y @ p[f"out_{layer}"]["kernel"] + p[f"out_{layer}"]["bias"]
    expected = normal(x, p["norm"]) @ p["embedding"].T
    found = module.apply(params, jnp.asarray(tokens), train=False)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_lstm_is_that_of_plain_numpy():
    module, tokens = SMALL["lstm"], sequences(3)
    params = initialised(module, jnp.asarray(tokens))
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    cell, output = np.zeros((3, 10)), np.zeros((3, 4))
    expected = []
    for t in range(7):
        before = tokens[:, t - 1] if t else np.zeros(3, int)
        gates = p["embedding"][before] @ p["into"] + output @ p["again"] + p["bias"]
        enter, forget, new, leave = (gates[:, 10 * k : 10 * k + 10] for k in range(4))
        cell = sigmoid(forget + 1) * cell + sigmoid(enter) * np.tanh(new)
        output = (sigmoid(leave) * np.tanh(cell)) @ p["out"]
        expected.append(output @ p["logits"]["kernel"])
    found = module.apply(params, jnp.asarray(tokens), train=False)
    np.testing.assert_allclose(found, np.stack(expected, 1), atol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused():
    module = models.Transformer(vocabulary=11, layers=1, width=10, heads=4, hidden=8)
    with pytest.raises(ValueError, match="heads: got 4, which do not divide the width of 10"):
        module.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32), train=False)


V = 32_000  # tokens


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Of each layer: projections, two dense layers with biases, two norms; then the last norm.
        ("transformer_base", V * 512 + 6 * (4 * 512**2 + 2 * 512 * 2048 + 2560 + 2048) + 1024),
        ("transformer_shallow", V * 512 + 2 * (4 * 512**2 + 2 * 512 * 2048 + 2560 + 2048) + 1024),
        (
            "transformer_narrow_and_shallow",
            V * 256 + 2 * (4 * 256**2 + 2 * 256 * 1024 + 1280 + 1024) + 512,
        ),
        ("transformer_wide", V * 1024 + 6 * (4 * 1024**2 + 2 * 1024 * 4096 + 5120 + 4096) + 2048),
        # Embeddings; gates of embeddings and projections, with biases; projection; logits.
        ("lstm", V * 1024 + (1024 + 512 + 1) * 8192 + 2048 * 512 + 512 * V),
        ("transformer_tiny", V * 64 + 2 * (4 * 64**2 + 2 * 64 * 256 + 320 + 256) + 128),
        ("lstm_tiny", V * 64 + (64 + 64 + 1) * 512 + 128 * 64 + 64 * V),
    ],
)
def test_language_models_have_the_parameters_that_were_counted_by_hand(name, count):
    module = models.get(name, classes=V)
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    shapes = jax.eval_shape(
        lambda key, x: module.init(key, x, train=False), jax.random.key(0), tokens
    )
    assert models.parameter_count(shapes["params"]) == count


def made(tokens, vocabulary=11):
    fields = language.fields(SMALL["transformer"], length=tokens.shape[1], vocabulary=vocabulary)
    return bs.Workload(name="made", data={"train": {"tokens": tokens}}, **fields)


@pytest.mark.slow
def test_padding_counts_for_nothing_and_tokens_alike():
    tokens = sequences(4).astype(np.uint8)
    tokens[1, 3:] = 0
    tokens[3, 1:] = 0
    workload = made(tokens)
    params, state = workload.init(jax.random.key(0))
    batch = workload.prepare({"tokens": jnp.asarray(tokens)}, None)
    logits = np.asarray(
        SMALL["transformer"].apply({"params": params}, batch["tokens"], train=False)
    )
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    real = tokens != 0
    expected = -np.take_along_axis(logs, tokens[..., None].astype(int), -1)[..., 0][real]
    (total, count), _ = workload.loss(params, state, batch, jax.random.key(1), {})
    assert count == real.sum() == 7 + 3 + 7 + 1
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)
    measured = workload.metrics(params, state, batch)
    np.testing.assert_allclose(measured["loss"][0], expected.sum(), rtol=1e-5)
    wrong = (logits.argmax(-1) != tokens) & real
    assert measured["error"] == (wrong.sum(), real.sum())
    assert jnp.issubdtype(measured["error"][0].dtype, jnp.integer)
    more = np.pad(tokens, ((0, 0), (0, 3)))  # more padding changes nothing
    more = {"tokens": jnp.asarray(more, jnp.int32)}
    (again, same), _ = workload.loss(params, state, more, jax.random.key(1), {})
    assert same == count
    np.testing.assert_allclose(again, total, rtol=1e-5)


@pytest.mark.slow
def test_dropout_and_label_smoothing_are_hyperparameters():
    workload = made(sequences(6))
    params, state = workload.init(jax.random.key(0))
    batch = workload.prepare({"tokens": jnp.asarray(sequences(6))}, None)

    @jax.jit
    def loss(values):
        return workload.loss(params, state, batch, jax.random.key(1), values)[0][0]

    plain = loss({})
    np.testing.assert_allclose(loss({"label_smoothing": jnp.float32(0)}), plain, rtol=1e-6)
    np.testing.assert_allclose(loss({"dropout_rate": jnp.float32(0)}), plain, rtol=1e-6)
    assert abs(loss({"dropout_rate": jnp.float32(0.5)}) - plain) > 1e-2
    logits = SMALL["transformer"].apply({"params": params}, batch["tokens"], train=False)
    uniform = -jax.nn.log_softmax(logits).mean(-1).sum()
    smooth = loss({"label_smoothing": jnp.float32(0.1)})
    np.testing.assert_allclose(smooth, 0.9 * plain + 0.1 * uniform, rtol=1e-5)
    squares = sum((np.asarray(x, np.float64) ** 2).sum() for x in jax.tree.leaves(params))
    penalty = (np.asarray(batch["tokens"]) != 0).sum() * 0.3 / 2 * squares
    np.testing.assert_allclose(loss({"l2": jnp.float32(0.3)}), plain + penalty, rtol=1e-5)


def test_dropout_of_the_lstm_is_a_hyperparameter():
    module, tokens = SMALL["lstm"], jnp.asarray(sequences(6)).astype(jnp.int32)
    params = module.init(jax.random.key(0), tokens, train=False)

    @jax.jit
    def logits(rate, key):
        return module.apply(params, tokens, train=True, dropout_rate=rate, rngs={"dropout": key})

    plain = module.apply(params, tokens, train=False)
    np.testing.assert_allclose(logits(jnp.float32(0), jax.random.key(1)), plain, atol=1e-6)
    # Nothing is left of the inputs and of the outputs, and the projection has no bias.
    np.testing.assert_array_equal(logits(jnp.float32(0.999999), jax.random.key(1)), 0)
    some = [logits(jnp.float32(0.5), jax.random.key(k)) for k in (1, 2)]
    assert np.abs(some[0] - some[1]).max() > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "tiny_shakespeare/transformer_tiny",
        pytest.param("tiny_shakespeare/lstm_tiny", marks=pytest.mark.long),
    ],
)
@pytest.mark.slow
def test_a_small_study_of_text_reaches_a_goal(name, tmp_path):
    words = np.frombuffer(b"the cat sat on the mat. " * 200, np.uint8).reshape(-1, 16)
    splits = {"train": {"tokens": words[:200]}, "validation": {"tokens": words[200:264]}}
    named = workloads.get(name)
    model = models.get(name.split("/")[1], 256)
    fields = language.fields(model, length=16, vocabulary=256)
    workload = bs.Workload(name="cats", data=splits, **fields)
    assert named.hyperparameters == workload.hyperparameters
    study = bs.Study(
        workload=workload,
        optimizer="adam",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(3e-3, 1e-2)),
        batch_sizes=[8],
        goal=bs.Goal("validation/loss", 2.0),
        trials=1,
        max_steps=200,
    )
    result = study.run(tmp_path, progress=False)
    assert np.isfinite(result.steps_to_target()["steps"]).all()


def test_a_text_is_cut_into_splits_and_sequences_and_put_together_again():
    whole = bytes(range(1, 201)) * 5
    splits = text.decode({"input.txt": whole})
    assert {k: v["tokens"].shape for k, v in splits.items()} == {
        "train": (15, 64),
        "validation": (1, 64),
        "test": (1, 64),
    }
    assert splits["train"]["tokens"][0, :3].tolist() == [1, 2, 3]
    assert splits["train"]["tokens"][-1, 900 - 14 * 64 :].tolist() == [0] * (64 * 15 - 900)
    assert splits["validation"]["tokens"][0, 0] == whole[900]
    parts = {"train": [splits["train"], splits["validation"]], "test": [splits["test"]]}
    assert b"".join(text.encode(parts)["input.txt"]) == whole


@pytest.mark.data
def test_tiny_shakespeare_is_the_published_text():
    try:
        splits = datasets.load("tiny_shakespeare")
    except FileNotFoundError as error:
        pytest.skip(f"not here: {error}")
    assert {k: len(v["tokens"]) for k, v in splits.items()} == {
        "train": 15_686,
        "validation": 872,
        "test": 872,
    }
    start = splits["train"]["tokens"][0].tobytes()
    assert start.startswith(b"First Citizen:\nBefore we proceed any further, hear me speak.")
    assert datasets.title("tiny_shakespeare", splits) == "tiny_shakespeare"
    other = {**splits, "test": {"tokens": splits["test"]["tokens"][::-1]}}
    assert datasets.title("tiny_shakespeare", other) == "tiny_shakespeare (other text)"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny_shakespeare/fc_64", "'fc_64' is a model of images"),
        ("mnist/lstm_tiny", "'lstm_tiny' is a model of text"),
    ],
)
def test_models_and_data_that_do_not_go_together_are_refused(name, words):
    with pytest.raises(ValueError, match=words):
        workloads.get(name)


def test_a_published_text_is_cut_as_tfds_cuts_it():
    """The first nine tenths, and halves of the rest: of 1,115,394 bytes 1,003,854 and 55,770."""
    of = np.random.default_rng(0).integers(97, 122, 1_115_394).astype(np.uint8).tobytes()
    splits = text.decode({"input.txt": of})
    found = {name: part["tokens"].tobytes().rstrip(b"\0") for name, part in splits.items()}
    assert [len(found[name]) for name in ("train", "validation", "test")] == [
        1_003_854,
        55_770,
        55_770,
    ]
    assert b"".join(found.values()) == of
    try:
        splits = datasets.load("tiny_shakespeare")
    except FileNotFoundError as error:
        pytest.skip(f"not here: {error}")
    parts = [part["tokens"].tobytes().rstrip(b"\0") for part in splits.values()]
    again = text.decode({"input.txt": b"".join(parts)})
    for name, part in splits.items():
        np.testing.assert_array_equal(again[name]["tokens"], part["tokens"])
