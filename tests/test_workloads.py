"""Workloads: named ones, from Flax modules, from functions, and what is refused."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchscale as bs
from batchscale import checks, workloads


def images(examples, seed=0, classes=3):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, examples)
    pixels = random.integers(0, 100, (examples, 6, 6, 1)) + 50 * labels[:, None, None, None]
    return pixels.astype(np.uint8), labels


class Normalised(nn.Module):
    """A classifier with batch statistics and dropout."""

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=0.5):
        x = nn.Dense(16)(x.reshape(x.shape[0], -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x) if train else x
        return nn.Dense(3)(x)


@pytest.mark.slow
def test_a_flax_module_with_batch_statistics_and_dropout_is_a_workload(tmp_path):
    data = {"train": images(90), "validation": images(60, 1)}
    workload = bs.Workload.from_flax(Normalised(), data)
    assert (workload.name, workload.classes) == ("Normalised", 3)
    study = bs.Study(
        workload=workload,
        optimizer="adam",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-3, 1e-1), label_smoothing=0.1),
        batch_sizes=[16],
        goal=bs.Goal("validation/error", 0.2),
        trials=4,
        max_steps=200,
        microbatch=8,
    )
    result = study.run(tmp_path, progress=False)
    assert np.isfinite(result.steps_to_target()["steps"]).all()
    run = study.run_trial(batch_size=16, trial=0, steps=5)
    mean = run.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.abs(mean).max() > 0


def test_pixels_are_divided_by_the_scale_and_label_smoothing_is_that_of_its_formula():
    workload = bs.Workload.from_flax(
        nn.Sequential([lambda x: x.sum((2, 3))[:, :3]]), {"train": images(4)}
    )
    batch = workload.prepare(jax.tree.map(jnp.asarray, workload.splits()["train"]), None)
    x, y = images(4)
    np.testing.assert_allclose(batch["input"], x / 255, rtol=1e-6)
    params, state = workload.init(jax.random.key(0))
    (plain, count), _ = workload.loss(params, state, batch, jax.random.key(0), {})
    (smooth, _), _ = workload.loss(
        params, state, batch, jax.random.key(0), {"label_smoothing": jnp.float32(0.3)}
    )
    logits = (x / 255.0).sum((2, 3))[:, :3]
    p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = 0.7 * np.eye(3)[y] + 0.1
    assert count == 4
    np.testing.assert_allclose(plain, -p[np.arange(4), y].sum(), rtol=1e-5)
    np.testing.assert_allclose(smooth, -(target * p).sum(), rtol=1e-5)


def test_named_workloads_state_their_sizes():
    workload = workloads.get("digits/fc_64")
    assert {name: len(split["label"]) for name, split in workload.splits().items()} == {
        "train": 1_100,
        "validation": 350,
        "test": 347,
    }
    image = workload.prepare(workload.splits()["train"], None)["image"]
    assert (image.min(), image.max()) == (0, 1)


@pytest.mark.slow
def test_the_table_lists_every_workload_with_size_and_cost():
    table = workloads.table().set_index("workload")
    assert table.loc["mnist/simple_cnn_base", "parameters"] == 3_274_634
    # A gradient costs at least two operations a weight forward and two backward.
    dense = table[table.index.str.contains("fc_")]
    assert table["studies"].sum() == 35
    assert (dense["flops"] > 4 * dense["parameters"] * 0.9).all()
    assert (dense["flops"] < 8 * dense["parameters"] + 20_000).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits/fc_128", "workload: got 'mnits/fc_128', wanted 'data set/model' with a data set"),
        (
            "mnist",
            "workload: got 'mnist', wanted 'data set/model' with a data set of digits, mnist",
        ),
        ("mnist/vgg", "name: 'vgg' is not a model. Use one of fc_<width>"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        workloads.get(name)


class Deterministic(nn.Module):
    """A classifier that is told by `deterministic` whether it is trained."""

    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        x = nn.Dropout(0.9, deterministic=deterministic)(x.reshape(x.shape[0], -1).astype(float))
        return nn.Dense(3)(x)


def test_dropout_is_on_in_training_whatever_its_switch_is_called():
    data = {"train": images(30)}
    workload = bs.Workload.from_flax(Deterministic(), data)
    params, state = workload.init(jax.random.key(0))
    batch = workload.prepare(workload.splits()["train"], None)
    losses = [
        float(workload.loss(params, state, batch, jax.random.key(n), {})[0][0]) for n in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_switch_of_an_unknown_name_is_refused():
    class Training(nn.Module):
        @nn.compact
        def __call__(self, x, training):
            return nn.Dense(3)(x)

    with pytest.raises(ValueError, match="takes 'training', and it is not known what that is"):
        bs.Workload.from_flax(Training(), {"train": images(20)})


def test_labels_out_of_range_are_refused_when_the_workload_is_made():
    x, y = images(20)
    y[3] = 7
    message = "labels: split 'validation' has 1 label outside 0 to 2 (smallest 0, largest 7)."
    with pytest.raises(ValueError, match=re.escape(message)):
        bs.Workload.from_flax(Normalised(), {"train": images(20), "validation": (x, y)})


def test_a_workload_without_training_data_is_refused():
    message = "data: got the splits validation, and no 'train'."
    with pytest.raises(ValueError, match=re.escape(message)):
        bs.Workload.from_flax(Normalised(), {"validation": images(20)})
    with pytest.raises(ValueError, match=re.escape(message)):
        bs.Workload.from_functions(dict, lambda p, b: 0.0, data={"validation": images(20)})


def test_a_loss_that_is_a_mean_is_the_loss_of_every_example():
    x = np.linspace(-1, 1, 12, dtype=np.float32)
    data = {"train": (x, 2 * x), "validation": (x, 2 * x)}

    def squares(params, batch):
        return (params * batch["input"] - batch["label"]) ** 2

    def mean(params, batch):
        return squares(params, batch).mean()

    def init(key):
        return jnp.float32(0.5)

    batch = data["train"]
    batch = {"input": jnp.asarray(batch[0]), "label": jnp.asarray(batch[1])}
    results = [
        bs.Workload.from_functions(init, loss, data=data).loss(
            jnp.float32(0.5), {}, batch, None, {}
        )[0]
        for loss in (squares, mean)
    ]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)
    assert results[0][1] == 12


def short(workload, metric):
    """A study of ten steps."""
    return bs.Study(
        workload=workload,
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=0.1),
        batch_sizes=[4],
        goal=bs.Goal(metric, 0.1),
        trials=1,
        max_steps=10,
    )


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        (lambda p, b: (p["w"] * b["input"] - b["label"][:, None]) ** 2, r"\(2, 2\)"),
        (lambda p, b: ((p["w"] * b["input"]) ** 2)[:, None], r"\(2, 1\)"),
        (lambda p, b: jnp.ones(3) * p["w"], r"\(3,\)"),
    ],
)
@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize("what", ["loss", "metric 'error'"])
def test_what_is_not_one_value_an_example_is_refused_before_anything_compiles(
    values, shape, what, tmp_path
):
    x = np.linspace(-1, 1, 64, dtype=np.float32)

    def right(params, batch):
        return (params["w"] * batch["input"] - batch["label"]) ** 2

    workload = bs.Workload.from_functions(
        lambda key: {"w": jnp.zeros(())},
        loss=values if what == "loss" else right,
        metrics={"error": right if what == "loss" else values},
        data={"train": (x, x), "validation": (x, x)},
    )
    study = short(workload, "validation/error")
    message = f"^{what}: got an array of shape {shape} for a batch of 2, wanted "
    with pytest.raises(ValueError, match=message):
        study.run(tmp_path, progress=False)


def misspelt(**functions):
    """A study of a slope, with some of its functions replaced."""
    x = np.linspace(-1, 1, 16, dtype=np.float32)

    def loss(params, model_state, batch, key, hyperparameters):
        errors = (params["w"] * batch["input"] - batch["label"]) ** 2
        return (jnp.sum(errors), jnp.asarray(len(errors))), model_state

    def metrics(params, model_state, batch):
        return {"loss": loss(params, model_state, batch, None, {})[0]}

    workload = bs.Workload(
        name="slope",
        init=lambda key: ({"w": jnp.zeros(())}, {}),
        **{"loss": loss, "metrics": metrics, **functions},
        data={"train": {"input": x, "label": x}, "validation": {"input": x, "label": x}},
    )
    return short(workload, "validation/loss")


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        (
            {"loss": lambda params, state, batch, key, h: batch["lable"]},
            "workload 'slope': its loss: 'lable' is looked up in it. The fields of its examples "
            "are input, label; those of its parameters w; and the hyperparameters are "
            "learning_rate.",
        ),
        (
            {"loss": lambda params, state, batch, key, h: h["dropout"]},
            "workload 'slope': its loss: 'dropout' is looked up in it.",
        ),
        (
            {"metrics": lambda params, state, batch: {"loss": params["weight"]}},
            "workload 'slope': its metrics: 'weight' is looked up in it.",
        ),
        (
            {"loss": lambda params, state, batch, key, h: params["w"]},
            "workload 'slope': its loss returns ShapeDtypeStruct(shape=(), dtype=float32), wanted "
            "((sum, count), model_state)",
        ),
        (
            {
                "loss": lambda params, state, batch, key, h: (
                    (params["w"] * batch["input"], jnp.ones(())), state
                )
            },
            "workload 'slope': its loss returns ((ShapeDtypeStruct(shape=(2,), dtype=float32)",
        ),
    ],
)  # fmt: skip
def test_functions_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path, functions, message
):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        misspelt(**functions).run(tmp_path / "study", progress=False)
    assert not (tmp_path / "study").exists()
    misspelt().run(tmp_path / "study", progress=False)  # and nothing else is wrong with them


def test_a_sum_for_a_mean_is_refused_and_the_folder_takes_the_study_that_is_mended(tmp_path):
    x = np.linspace(-1, 1, 16, dtype=np.float32)

    def slope(reduce):
        workload = bs.Workload.from_functions(
            lambda key: {"w": jnp.zeros(())},
            lambda params, batch: reduce((params["w"] * batch["input"] - batch["label"]) ** 2),
            data={"train": (x, x), "validation": (x, x)},
        )
        return short(workload, "validation/loss")

    with pytest.raises(ValueError, match="looks like a sum over the batch where its mean"):
        slope(jnp.sum).run(tmp_path, progress=False)
    result = slope(jnp.mean).run(tmp_path, progress=False)
    assert len(result.measurements) > 1


POINTS = np.linspace(-1, 1, 64, dtype=np.float32)


def slope(**others):
    """A workload of plain functions, one of whose metrics is made of sums on the host."""

    def squares(params, batch):
        return (params["w"] * batch["input"] - batch["label"]) ** 2

    fields = {
        "init": lambda key: {"w": jnp.zeros(())},
        "loss": squares,
        "metrics": {"own": lambda params, batch: {"n": len(batch["input"]), "s": jnp.ones(())}},
        "finalize": {"own": lambda added: added["s"] / added["n"]},
        "data": {"train": (POINTS, POINTS), "validation": (POINTS[:8], POINTS[:8])},
    }
    return bs.Workload.from_functions(**fields | others)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"finalize": {"own": None}}, "finalize['own']: got a NoneType, wanted a function, called"),
        ({"finalize": [np.mean]}, "finalize: got a list, wanted functions by the name of their"),
        ({"metrics": [np.mean]}, "metrics: got a list, wanted functions by the name of their"),
        ({"metrics": np.mean}, "wanted functions by the name of their metric, such as metrics={"),
        ({"metrics": {"own": 3.0}}, "metrics['own']: got a float, wanted a function, called as f("),
        ({"loss": None}, "loss: got a NoneType, wanted a function, called as loss(params, batch)"),
        ({"unpaired": "label"}, "unpaired: got 'label', wanted several names, such as unpaired=("),
        ({"unpaired": 3}, "unpaired: got an int, wanted names, words in a tuple; () where there"),
        ({"hyperparameters": "b1"}, "hyperparameters: got 'b1', wanted several names, such as hyp"),
        ({"preprocess": 255.0}, "preprocess: got a float, wanted a function, called as preprocess"),
    ],
)
def test_fields_of_another_kind_are_refused_where_the_workload_is_made(fields, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        slope(**fields)


def test_functions_of_the_full_contract_are_refused_where_they_are_none():
    with pytest.raises(TypeError, match=r"^metrics: got a dict, wanted a function, called as metr"):
        bs.Workload("own", dict, dict, {"error": dict}, {"train": {"input": POINTS}})  # pyright: ignore


def test_names_may_come_in_a_list():
    workload = slope(unpaired=["label"], hyperparameters=["b1"])
    assert (workload.unpaired, workload.hyperparameters) == (("label",), ("b1",))


def test_a_mode_that_is_a_word_is_refused():
    with pytest.raises(TypeError, match=re.escape("such as {'train': (True, False)}.")):
        bs.Workload.from_flax(Normalised(), {"train": images(20)}, mode="train")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda added: added["t"], "it raises KeyError: 't'. It is given the sums over a split"),
        (lambda added: 1 / int(added["n"] - 64), "it raises ZeroDivisionError: division by zero."),
        (lambda added: None, "it returns None, wanted one real number, NaN where there is none."),
        (lambda added: "0.5", "it returns '0.5', wanted one real number"),
        (lambda added: 1j * added["s"], "it returns 1j, wanted one real number"),
        (lambda added: np.ones(1), "it returns an array of shape (1,), wanted one real number"),
    ],
)
def test_what_is_finalized_is_one_number_or_told_by_name(function, message):
    workload = slope(finalize={"own": function})
    added = {"n": np.int64(64), "s": np.float64(1)}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        workload.finalized("own", added)
    assert str(error.value).startswith("finalize: of the metric 'own' of workload 'own': it r")


def test_finalize_may_return_any_real_scalar():
    added = {"n": np.int64(4), "s": np.float64(1)}
    for make in (float, np.float32, jnp.float32, np.asarray, lambda x: x):
        found = slope(finalize={"own": lambda a, make=make: make(a["s"] / a["n"])})
        assert found.finalized("own", added) == 0.25
    assert np.isnan(
        slope(finalize={"own": lambda a: 0 * a["s"] / (0 * a["n"])}).finalized("own", added)
    )


@pytest.mark.usefixtures("usual_promotion")
def test_complex_sums_are_refused():
    def waves(params, batch):
        return jnp.exp(1j * params["w"] * batch["input"])

    workload = slope(metrics={"wave": waves}, finalize={})
    message = "workload 'own': a sum or a count of its metric 'wave' is complex64, wanted real"
    with pytest.raises(ValueError, match=re.escape(message)):
        checks.metric(bs.Goal("validation/wave", 0.1), workload, ["learning_rate"])


@pytest.mark.parametrize("made", [lambda x: x, lambda x: lambda: x])
def test_whole_numbers_that_would_wrap_around_are_refused_in_the_full_contract_too(made):
    def read(inputs):
        data = {"train": {"input": np.array(inputs), "label": np.zeros(4, np.int32)}}
        workload = bs.Workload("own", dict, lambda *_: (0.0, {}), lambda *_: {}, made(data))
        return workload.splits()["train"]["input"]

    with pytest.raises(ValueError, match=r"'input' reaches from 7 to 4294967301, which int32"):
        read([2**32 + 5, 7, 9, 11])
    assert read([2**31 - 1, -(2**31), 9, 11]).tolist() == [2**31 - 1, -(2**31), 9, 11]


def test_masked_arrays_are_refused_in_the_full_contract_too():
    masked = {"input": np.ma.masked_less(POINTS, 0), "label": POINTS}
    message = r"data: split 'train' of 'own': field 'input' is a masked array with 32 of 64 entries"
    with pytest.raises(ValueError, match=message):
        bs.Workload("own", dict, dict, dict, {"train": masked})


def test_a_workload_and_a_study_are_shown_without_their_data():
    assert repr(slope(name="slope")) == (
        "Workload('slope', train: 64 examples, validation: 8 examples; input float32 (), "
        "label float32 ())"
    )
    assert repr(workloads.get("mnist/fc_64")) == (
        "Workload('mnist/fc_64', train: 55,000 examples; loaded when it is needed)"
    )
    assert "array(" not in str(short(slope(), "validation/loss"))
    assert "Workload('own', train: 64 examples" in str(short(slope(), "validation/loss"))
