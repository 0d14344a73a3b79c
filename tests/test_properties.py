"""One table: workloads x optimizers x schedules, each with the properties that all trials have."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from helpers import compiled, points, writing_after_every_evaluation

import batchscale as bs
from batchscale.engine import parallel
from batchscale.engine.engine import Engine
from batchscale.engine.layout import Layout
from batchscale.engine.packs import TrialId, stacked, unpack

RATE = bs.SearchSpace(learning_rate=bs.LogUniform(0.05, 0.5))
DECAY = {"learning_rate_decay_steps": 20.0, "end_learning_rate_factor": 0.1}


@dataclasses.dataclass(frozen=True)
class Case:
    """A workload, trained in one way.

    `exact` says whether microbatches take the step of the whole batch, `params` the type of the
    parameters, `divides` whether the update does: one device rounds that otherwise than several.
    """

    fields: dict[str, Any]
    optimizer: Any = "sgd"
    schedule: Any = "constant"
    space: bs.SearchSpace = RATE
    metric: str = "error"
    goal: tuple[Any, ...] = (1e-9,)
    validation: int = 70
    params: str = "float32"
    exact: bool = True
    divides: bool = False
    state: Any = dict

    def study(self, params: str | None = None, **changes) -> bs.Study:
        x, y = points(60)
        some = {"train": (x, y), "validation": points(self.validation, 1)}
        splits = {
            name: {"input": np.float32(x), "label": np.int32(y)} for name, (x, y) in some.items()
        }
        made = {"init": init(params or self.params, self.state), "loss": loss(), "metrics": metrics}
        return bs.Study(
            **{
                "workload": bs.Workload(name="case", data=splits, **made | self.fields),
                "optimizer": self.optimizer,
                "space": self.space,
                "schedule": self.schedule,
                "batch_sizes": [12],
                "goal": bs.Goal(f"validation/{self.metric}", *self.goal),
                "trials": 3,
                "max_steps": 14,
                "evaluate": bs.Evaluate(share=None),
                "lanes": 2,
            }
            | changes
        )


def init(dtype, state):
    def make(key):
        first, second = jax.random.split(key)
        params = {
            "w": (jax.random.normal(first, (2, 8)) / 2**0.5).astype(dtype),
            "v": (jax.random.normal(second, (8, 3)) / 8**0.5).astype(dtype),
        }
        return params, state()

    return make


def logits(params, x, keep=1.0):
    return jax.nn.relu(x.astype(params["w"].dtype) @ params["w"]) * keep @ params["v"]


def each(params, batch, keep=1.0):
    out = logits(params, batch["input"], keep)
    return optax.softmax_cross_entropy_with_integer_labels(out, batch["label"])


def summed(values):
    return values.sum(dtype=jnp.promote_types(values.dtype, jnp.float32)), jnp.asarray(len(values))


def loss():
    def of(params, model_state, batch, key, h):
        return summed(each(params, batch)), model_state

    return of


def error(params, batch):
    wrong = logits(params, batch["input"]).argmax(-1) != batch["label"]
    return wrong.sum(dtype=jnp.int32), jnp.asarray(wrong.size)


def metrics(params, model_state, batch):
    return {"loss": summed(each(params, batch)), "error": error(params, batch)}


def of_batches() -> dict[str, Any]:
    """Inputs are centred by the batch in training, and by a running mean in evaluation."""

    def of(params, model_state, batch, key, h):
        mean = batch["input"].mean(0)
        centred = batch | {"input": batch["input"] - mean[None]}
        kept = {"mean": 0.9 * model_state["mean"] + 0.1 * mean, "steps": model_state["steps"] + 1}
        return summed(each(params, centred)), kept

    def measured(params, model_state, batch):
        return metrics(params, {}, batch | {"input": batch["input"] - model_state["mean"][None]})

    return {"loss": of, "metrics": measured}


def statistics():
    return {"mean": jnp.zeros(2), "steps": jnp.zeros((), jnp.int32)}


def augmented(batch, key):
    """Noise in training, none in evaluation."""
    if key is None:
        return batch
    return batch | {"input": batch["input"] + 0.1 * jax.random.normal(key, batch["input"].shape)}


def dropped(params, model_state, batch, key, h):
    keep = jax.random.bernoulli(key, 1 - h["rate"], (len(batch["label"]), 8)) / (1 - h["rate"])
    return summed(each(params, batch, keep.astype(params["w"].dtype))), model_state


def variance_explained(params, model_state, batch):
    """Of the label as a number by the likeliest class: sums that add, and no ratio of two."""
    label = batch["label"].astype(jnp.float32)
    missed = label - logits(params, batch["input"]).argmax(-1)
    return {
        "r2": {
            "missed": jnp.square(missed).sum(),
            "squares": jnp.square(label).sum(),
            "sum": label.sum(),
            "count": jnp.asarray(label.size),
        }
    }


def r2(sums) -> float:
    total = sums["squares"] - sums["sum"] ** 2 / sums["count"]
    return float(1 - sums["missed"] / total)


class Averaged(NamedTuple):
    mean: Any
    inner: Any


def averaging(h):
    """SGD whose iterates are averaged beside it."""
    inner = optax.sgd(h["learning_rate"], momentum=0.9)

    def update(gradient, state, params):
        updates, after = inner.update(gradient, state.inner, params)
        new = optax.apply_updates(params, updates)
        mean = jax.tree.map(lambda m, p: 0.8 * m + 0.2 * p, state.mean, new)
        return updates, Averaged(mean, after)

    return optax.GradientTransformation(lambda params: Averaged(params, inner.init(params)), update)


def warm_up(step, h):
    return h["learning_rate"] * jnp.minimum((jnp.float32(step) + 1) / 5, 1.0)


FIXED = {"momentum": 0.9}
CASES = {
    "plain": Case({}),
    "batch statistics": Case(
        of_batches(),
        "momentum",
        space=bs.SearchSpace(**dict(RATE.items()), **FIXED),
        exact=False,
        state=statistics,
    ),
    "augmentation": Case(
        {"preprocess": augmented},
        "nesterov",
        space=bs.SearchSpace(**dict(RATE.items()), **FIXED),
        exact=False,
    ),
    "finalize": Case(
        {"metrics": variance_explained, "finalize": {"r2": r2}},
        "adam",
        "linear_decay",
        bs.SearchSpace(**dict(RATE.items()), **DECAY),
        metric="r2",
        goal=(0.99, "max"),
        divides=True,
    ),
    "averaged parameters": Case(
        {"evaluated_parameters": lambda params, state: state.mean}, averaging, warm_up
    ),
    "counts, in bounds": Case(
        {},
        "adamw",
        "linear_decay",
        bs.SearchSpace(**dict(RATE.items()), **DECAY, weight_decay=0.01),
        validation=1_000,
        divides=True,
    ),
    "bfloat16": Case({}, "adam", params="bfloat16", metric="loss", divides=True),
    "dropout": Case(
        {"loss": dropped, "hyperparameters": ["rate"]},
        "sgd",
        warm_up,
        bs.SearchSpace(learning_rate=bs.LogUniform(0.05, 0.5), rate=bs.Uniform(0.1, 0.5)),
        exact=False,
    ),
}  # fmt: skip


def some(*names):
    """These cases in every run of the suite, the others where there is time."""
    return pytest.mark.parametrize(
        "name", [n if n in names else pytest.param(n, marks=pytest.mark.long) for n in CASES]
    )


pytestmark = [
    pytest.mark.usefixtures("usual_promotion"),  # what is trained here is a user's
    pytest.mark.filterwarnings("ignore:no trial reached", "ignore:workload 'case'"),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The tables of a case, trained once."""
    found = {}

    def of(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("case")
            found[name] = CASES[name].study().run(folder, progress=False)
        return found[name]

    return of


def assert_same(some, other):
    pd.testing.assert_frame_equal(some.trials, other.trials, check_exact=True)
    pd.testing.assert_frame_equal(some.measurements, other.measurements, check_exact=True)


@some("batch statistics", "counts, in bounds")
@pytest.mark.slow
def test_devices_change_no_bit_or_those_of_divisions_alone(name, reference, tmp_path):
    assert jax.device_count() == 2
    alone = CASES[name].study().run(tmp_path, progress=False, devices=jax.devices()[:1])
    if not CASES[name].divides:
        assert_same(alone, reference(name))
    else:
        pd.testing.assert_frame_equal(alone.trials, reference(name).trials, rtol=1e-5)
        several = reference(name).measurements
        pd.testing.assert_frame_equal(alone.measurements, several, rtol=2e-2, atol=1e-4)


@some("augmentation", "counts, in bounds")
@pytest.mark.slow
def test_a_kill_changes_no_bit(name, reference, tmp_path, monkeypatch):
    writing_after_every_evaluation(monkeypatch)
    told = []

    def kill(progress):
        told.append(progress.step)
        if len(told) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CASES[name].study().run(tmp_path, progress=kill)
    resumed = CASES[name].study().run(tmp_path, progress=lambda p: told.append(p.step))
    assert told[8] > 3  # it did not begin anew
    assert_same(resumed, reference(name))


@some("finalize", "dropout")
@pytest.mark.slow
def test_lanes_and_microbatches_change_nothing_but_rounding(name, tmp_path):
    case = CASES[name]
    if case.params != "float32":
        pytest.skip("of 16 bits nothing is left but rounding")
    ways = [{"lanes": 1}, {"lanes": 3}]
    if case.exact:
        ways[1]["microbatch"] = 5  # 12 is 5 + 5 + 2
    with jax.enable_x64(True):
        one, other = (
            case.study("float64", **way).run(tmp_path / str(number), progress=False)
            for number, way in enumerate(ways)
        )
    pd.testing.assert_frame_equal(one.trials, other.trials, rtol=1e-9)
    pd.testing.assert_frame_equal(one.measurements, other.measurements, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_states_keep_the_types_they_began_with_and_more_steps_compile_nothing(name):
    case = CASES[name]
    some = case.study()
    layout, trials = Layout(2, 12), [TrialId(0), TrialId(1)]
    values = stacked([some.space.at(12).typical()] * 2)
    with Engine(some.training(), mesh=parallel.mesh(jax.devices()[:1])) as engine:
        packs = engine.start(trials, values, batch_size=12, layout=layout)
        before = [leaf.dtype for leaf in unpack(packs).leaves]
        engine.advance(packs, batch_size=12, layout=layout, step=0, to=2)
        engine.measure(packs, engine.splits, layout=layout, bounded=trials)
        other = stacked([{name: 0.9 * x for name, x in some.space.at(12).typical().items()}] * 2)
        with compiled() as programs:
            packs = engine.pack(unpack(packs), other, layout=layout)
            engine.advance(packs, batch_size=12, layout=layout, step=2, to=9)
            engine.measure(packs, engine.splits, layout=layout, bounded=trials)
        assert [leaf.dtype for leaf in unpack(packs).leaves] == before
    assert not programs
    assert {str(x.dtype) for x in jax.tree.leaves(packs[0].state.params)} == {case.params}


@pytest.mark.long
def test_the_cases_do_what_they_are_called_after(reference):
    """Else nothing above would have tested it."""
    found = {name: reference(name).measurements for name in CASES}
    last = {name: table.groupby("trial").last() for name, table in found.items()}
    assert found["counts, in bounds"]["validation/error_at_least"].notna().any()
    assert found["finalize"]["validation/r2"].max() > 0
    plain = last["plain"]["validation/loss"]
    for name in ("augmentation", "dropout", "averaged parameters", "bfloat16"):
        assert (last[name]["validation/loss"] != plain).all()
    assert (last["batch statistics"]["validation/loss"] < np.log(3)).any()
