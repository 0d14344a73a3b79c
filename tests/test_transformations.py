"""Code that is not ours, in types that are not ours: a plain loop of the same gives the same."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batches
from optax import contrib

import batchscale as bs
from batchscale import keys, optimizers, train
from batchscale.engine import parallel
from batchscale.engine.engine import Engine
from batchscale.engine.layout import Layout
from batchscale.engine.packs import TrialId, unpack

EXAMPLES, BATCH, STEPS, RATE = 96, 16, 20, 0.05
TRIAL = 1


@dataclasses.dataclass(frozen=True)
class Case:
    """A transformation as a user's factory makes it, and as a plain loop does.

    Attributes:
      make: from a learning rate and the trial's key; a number in the loop, traced in the library.
      takes_key: whether the factory is given the key.
      params: what the parameters are wrapped in.
    """

    make: object
    takes_key: bool = False
    params: object = staticmethod(lambda params: params)


CASES = {
    "sgd": Case(lambda rate, key: optax.sgd(rate)),
    "momentum": Case(lambda rate, key: optax.sgd(rate, momentum=0.9)),
    "nesterov": Case(lambda rate, key: optax.sgd(rate, momentum=0.9, nesterov=True)),
    "adam": Case(lambda rate, key: optax.adam(rate)),
    "adamw": Case(lambda rate, key: optax.adamw(rate, weight_decay=0.1)),
    "lion": Case(lambda rate, key: optax.lion(rate * 0.1, b1=0.8)),
    "adafactor": Case(lambda rate, key: optax.adafactor(rate)),
    "lamb": Case(lambda rate, key: optax.lamb(rate)),
    "muon": Case(lambda rate, key: contrib.muon(rate * 0.2)),
    "schedule_free": Case(lambda rate, key: contrib.schedule_free_sgd(rate)),
    "lookahead": Case(
        lambda rate, key: optax.lookahead(optax.sgd(rate, momentum=0.9), 5, 0.5),
        params=optax.LookaheadParams.init_synced,
    ),
    "multi_steps": Case(lambda rate, key: optax.MultiSteps(optax.sgd(rate, momentum=0.9), 3)),
    "clip": Case(lambda rate, key: optax.chain(optax.clip_by_global_norm(0.3), optax.adam(rate))),
    "noisy_sgd": Case(lambda rate, key: optax.noisy_sgd(rate, key=key), takes_key=True),
    "inject_hyperparams": Case(
        lambda rate, key: optax.inject_hyperparams(optax.sgd)(rate, momentum=0.9)
    ),
    "apply_if_finite": Case(lambda rate, key: optax.apply_if_finite(optax.adam(rate), 3)),
    "zero_nans": Case(lambda rate, key: optax.chain(optax.zero_nans(), optax.adam(rate))),
}
TYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "x64": jnp.float32}


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(EXAMPLES, 3)).astype(np.float32)
    return x, x @ np.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 3.0]], np.float32)


def regression(case, dtype):
    def init(key):
        return case.params(
            {
                "w": jax.random.normal(key, (3, 2), jnp.float32).astype(dtype),
                "b": jnp.ones((1, 2), dtype),
            }
        )

    def loss(params, batch):
        params = getattr(params, "fast", params)
        out = batch["input"].astype(dtype) @ params["w"] + params["b"]
        return jnp.square(out - batch["label"].astype(dtype)).mean(1)

    x, y = data()
    return bs.Workload.from_functions(init, loss, data={"train": (x, y), "validation": (x, y)})


def study(case, dtype):
    def factory(h, key):
        return case.make(h["learning_rate"], key)

    return bs.Study(
        workload=regression(case, dtype),
        optimizer=factory if case.takes_key else lambda h: case.make(h["learning_rate"], None),
        space=bs.SearchSpace(learning_rate=RATE),
        batch_sizes=[BATCH],
        goal=bs.Goal("validation/loss", 1e-9),
        trials=2,
        max_steps=100,
    )


def trained(some):
    """The parameters of the trial after twenty steps, on the engine that studies run on."""
    id, layout = TrialId(TRIAL), Layout(lanes=1, microbatch=BATCH)
    with Engine(some.training(), mesh=parallel.mesh(jax.devices()[:1])) as engine:
        packs = engine.start(
            [id], {"learning_rate": np.array([RATE])}, batch_size=BATCH, layout=layout
        )
        engine.advance(packs, batch_size=BATCH, layout=layout, step=0, to=STEPS)
        return engine.params(unpack(packs), id)[0]


def plain_loop(case, workload, dtype):
    """Twenty steps of optax as its documentation has them, on the batches of the trial."""
    name = (0, BATCH, TRIAL, 0)
    init, _, _, noise = (jax.random.fold_in(keys.wrap(train.trial_key(*name)), n) for n in range(4))
    params = jax.jit(workload.init)(init)[0]
    transformation = case.make(RATE, noise)
    state = jax.jit(optimizers.as_usual(transformation.init))(params)
    x, y = data()

    @jax.jit
    def step(params, state, batch):
        def mean(params):
            params = getattr(params, "fast", params)
            out = batch["input"].astype(dtype) @ params["w"] + params["b"]
            squares = jnp.square(out - batch["label"].astype(dtype)).mean(1)
            return squares.astype(jnp.float32).mean()

        gradient = jax.grad(mean)(params)
        update, apply = map(optimizers.as_usual, (transformation.update, optax.apply_updates))
        updates, state = update(getattr(gradient, "fast", gradient), state, params)
        return apply(params, updates), state

    for chosen in batches(name, STEPS, EXAMPLES):
        params, state = step(params, state, {"input": x[chosen], "label": y[chosen]})
    return params


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", CASES)
def test_a_trial_takes_the_steps_of_a_plain_loop_of_the_same_transformation(name, dtype):
    case = CASES[name]
    with jax.enable_x64(True) if dtype == "x64" else contextlib.nullcontext():
        some = study(case, TYPES[dtype])
        got = trained(some)
        wanted = plain_loop(case, some.workload, TYPES[dtype])
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    rounding = 0.03 if dtype == "bfloat16" else 2e-5
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == TYPES[dtype]
        np.testing.assert_allclose(
            a.astype(np.float64), np.asarray(b, np.float64), rtol=rounding, atol=rounding
        )
