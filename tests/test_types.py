"""Types that are not float32, keys of other kinds, and numbers that are no arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batches, perceptron, writing_after_every_evaluation

import batchscale as bs
from batchscale import keys
from batchscale.engine import layout, parallel
from batchscale.engine.engine import Engine
from batchscale.engine.packs import TrialId, stacked, unpack


def study(workload, **others):
    return bs.Study(
        **{
            "workload": workload,
            "optimizer": "sgd",
            "space": bs.SearchSpace(learning_rate=1.0),
            "goal": bs.Goal("validation/loss", -1e9),
            "trials": 1,
            "max_steps": 200,
        }
        | others
    )


def trained(some, steps, *, microbatch=None):
    """The parameters of the first trial after so many steps, at the study's only batch size."""
    (batch_size,) = some.resolved_batch_sizes()
    mesh, trial = parallel.mesh(jax.devices()[:1]), TrialId(0)
    packing = layout.choose(some.workload, cpu=True, batch_size=batch_size, trials=1)
    if microbatch is not None:
        packing = packing._replace(microbatch=microbatch)
    with Engine(some.training(), mesh=mesh) as engine:
        values = stacked([some.space.at(batch_size)])
        packs = engine.start([trial], values, batch_size=batch_size, layout=packing)
        engine.advance(packs, batch_size=batch_size, layout=packing, step=0, to=steps)
        return engine.params(unpack(packs), trial)[0]


def slope(dtype, value, examples):
    """A loss whose gradient is the same number for every example."""

    def loss(params, batch):
        return params["w"] * batch["input"].astype(dtype)

    x = np.full(examples, value, np.float32)
    return bs.Workload.from_functions(
        lambda key: {"w": jnp.zeros((), dtype)},
        loss,
        data={"train": {"input": x}, "validation": {"input": x[:8]}},
    )


@pytest.mark.parametrize(
    ("dtype", "gradient", "batch_size"),
    [
        (jnp.bfloat16, 1, 131_072),
        (jnp.float16, 1, 131_072),
        (jnp.float16, 300, 512),
        (jnp.float16, 900, 8_192),
        (jnp.float32, 300, 512),
    ],
)
def test_a_step_is_that_of_the_mean_gradient_whatever_sums_the_parameters_could_hold(
    dtype, gradient, batch_size
):
    some = study(slope(dtype, gradient, batch_size), batch_sizes=[batch_size])
    (w,) = jax.tree.leaves(trained(some, 1))
    assert w.dtype == dtype
    assert abs(float(w) + gradient) <= 4 * float(jnp.finfo(dtype).eps) * gradient


def test_sums_of_narrow_losses_and_metrics_are_wide():
    """500 losses of 300 are more than float16 holds, and 500 ones more than bfloat16 counts."""

    def ones(params, batch):
        return jnp.ones(batch["input"].shape, jnp.bfloat16) + params["w"].astype(jnp.bfloat16)

    workload = bs.Workload.from_functions(
        lambda key: {"w": jnp.ones((), jnp.float16)},
        lambda params, batch: 300 * params["w"] * batch["input"].astype(jnp.float16),
        metrics={"ones": ones},
        data={"train": {"input": np.ones(600)}, "validation": {"input": np.ones(500)}},
    )
    params, state = workload.init(keys.key(0))
    batch = {"input": jnp.ones(500)}
    for total, wanted in (
        (workload.loss(params, state, batch, keys.key(0), {})[0], 150_000),
        (workload.metrics(params, state, batch)["loss"], 150_000),
        (workload.metrics(params, state, batch)["ones"], 1_000),
    ):
        assert (total[0].dtype, float(total[0]), int(total[1])) == (jnp.float32, wanted, 500)


def masked(dtype=jnp.float32):
    """Sequences of four numbers, of which one sequence has none that counts."""
    random = np.random.default_rng(0)
    x = random.normal(size=(16, 4)).astype(np.float32)
    weight = (random.uniform(size=(16, 4)) < 0.7).astype(np.float32)
    weight[5] = 0

    def loss(params, model_state, batch, key, hyperparameters):
        residual = (params["w"] - batch["input"]) * batch["weight"]
        return ((residual**2).sum(), batch["weight"].sum()), model_state

    def metrics(params, model_state, batch):
        return {"loss": loss(params, model_state, batch, None, None)[0]}

    split = {"input": x, "weight": weight}
    return bs.Workload(
        name="masked",
        init=lambda key: ({"w": jnp.full((), 0.5, dtype)}, {}),
        loss=loss,
        metrics=metrics,
        data={"train": split, "validation": split},
    )


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize(("batch_size", "microbatch"), [(1, 1), (4, 1), (4, 3), (4, 4), (16, 5)])
def test_a_batch_that_counts_nothing_is_a_step_without_a_gradient(
    optimizer, batch_size, microbatch
):
    workload = masked()
    some = study(
        workload,
        optimizer=optimizer,
        space=bs.SearchSpace(
            learning_rate=0.05, **({"momentum": 0.5} if optimizer == "momentum" else {})
        ),
        batch_sizes=[batch_size],
    )
    got = trained(some, 40, microbatch=microbatch)["w"]
    data, w, v, empty = workload.splits()["train"], 0.5, 0.0, 0
    for chosen in batches((0, batch_size, 0, 0), 40, 16):
        x, weight = (data[name][chosen].astype(np.float64) for name in ("input", "weight"))
        g = (2 * (w - x) * weight).sum() / weight.sum() if weight.any() else 0.0
        empty += not weight.any()
        v = (0.5 * v if optimizer == "momentum" else 0.0) + g
        w = w - 0.05 * v
    assert bool(empty) == (batch_size == 1)
    np.testing.assert_allclose(got, w, rtol=1e-5)


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "linear_decay"])
@pytest.mark.parametrize("x64", [pytest.param(False, marks=pytest.mark.long), True])
def test_states_keep_the_types_that_init_gave_them(optimizer, schedule, x64):
    names = {"momentum": 0.9} if optimizer in ("momentum", "nesterov") else {}
    names |= {"weight_decay": 0.1} if optimizer == "adamw" else {}
    if schedule == "linear_decay":
        names |= {"learning_rate_decay_steps": 10.0, "end_learning_rate_factor": 0.1}
    dtype = jnp.float32 if x64 else jnp.bfloat16
    with jax.enable_x64(x64):
        some = study(
            masked(dtype),
            optimizer=optimizer,
            schedule=schedule,
            space=bs.SearchSpace(learning_rate=0.01, **names),
            batch_sizes=[4],
        )
        assert trained(some, 3)["w"].dtype == dtype


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The table of a small study under JAX's own settings."""
    return square_study().run(tmp_path_factory.mktemp("usual"), progress=False).measurements


def square_study(**others):
    space = bs.SearchSpace(learning_rate=bs.LogUniform(0.1, 2))
    return study(
        perceptron(),
        **{
            "space": space,
            "trials": 3,
            "batch_sizes": [16],
            "goal": bs.Goal("validation/error", 0.4),
        }
        | others,
    )


@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.default_prng_impl("rbg"),
        lambda: jax.legacy_prng_key("error"),
        lambda: jax.numpy_rank_promotion("raise"),
        lambda: jax.numpy_dtype_promotion("strict"),
    ],
    ids=["rbg", "no raw keys", "no rank promotion", "no type promotion"],
)
def test_the_users_settings_of_jax_change_nothing(setting, usual, tmp_path):
    with setting():
        some = square_study()
        result = some.run(tmp_path / "a", progress=False)
        some.run_trial(batch_size=16, trial=1, steps=3)
    assert result.measurements.equals(usual)


@pytest.mark.long
def test_keys_in_states_are_stored_and_the_noise_of_trials_differs(tmp_path, monkeypatch):
    """Nothing but noise moves the parameters, and the trials have the same hyperparameters."""
    writing_after_every_evaluation(monkeypatch)

    def init(key):
        return {"w": jnp.zeros(4)}, {"key": jax.random.key(1, impl="rbg")}

    def loss(params, model_state, batch, key, hyperparameters):
        used, kept = jax.random.split(model_state["key"])
        noise = jax.random.normal(used, (4,))
        return ((params["w"] * 0 * noise).sum(), batch["input"].size), {"key": kept}

    def metrics(params, model_state, batch):
        return {"loss": (jnp.abs(params["w"]).sum() * batch["input"].size, batch["input"].size)}

    split = {"input": np.ones((30, 1), np.float32)}
    workload = bs.Workload(
        name="noise",
        init=init,
        loss=loss,
        metrics=metrics,
        data={"train": split, "validation": split},
    )

    def factory(h):
        return optax.noisy_sgd(h["learning_rate"], eta=1.0, key=jax.random.key(7))

    some = study(
        workload,
        optimizer=factory,
        trials=3,
        batch_sizes=[4],
        space=bs.SearchSpace(learning_rate=0.1),
        goal=bs.Goal("validation/loss", 2.0, mode="max"),
        stop="all",
    )
    told = []

    def interrupt(progress):
        told.append(progress)
        if len(told) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        some.run(tmp_path / "stopped", progress=interrupt)
    assert list((tmp_path / "stopped" / "state").glob("*.npz"))
    result = some.run(tmp_path / "stopped", progress=False)
    assert result.measurements.equals(some.run(tmp_path / "whole", progress=False).measurements)
    at_five = result.measurements["validation/loss"].xs(5, level="step")
    assert at_five.nunique() == len(at_five) == 3
    run = some.run_trial(batch_size=4, trial=1, steps=5)
    assert run.curve["validation/loss"].iloc[-1] == at_five.loc[4, 1, 0]
    assert jax.random.key_impl(run.model_state["key"]) == "rbg"


@pytest.mark.parametrize(("examples", "trials"), [(8, 1), (8, 3), (1_200, 3)])
def test_numbers_of_python_are_taken_for_arrays(tmp_path, examples, trials):
    x = np.linspace(-1, 1, examples, dtype=np.float32)

    def loss(params, model_state, batch, key, hyperparameters):
        residual = params["w"] * batch["input"] - batch["input"]
        return ((residual**2).sum(), len(batch["input"])), model_state

    def metrics(params, model_state, batch):
        off = jnp.abs(params["w"] * batch["input"] - batch["input"]) > 0.1
        return {"error": (off.sum(), len(batch["input"])), "constant": (2.0 * off.size, off.size)}

    split = {"input": x}
    workload = bs.Workload(
        name="plain",
        init=lambda key: ({"w": 0.0}, {"steps": 0}),
        loss=loss,
        metrics=metrics,
        data={"train": split, "validation": split},
    )
    some = study(
        workload,
        batch_sizes=[8],
        trials=trials,
        space=bs.SearchSpace(learning_rate=0.3),
        goal=bs.Goal("validation/error", 0.01),
    )
    steps = some.run(tmp_path / "a", progress=False).steps_to_target()["steps"]
    assert np.isfinite(steps).all()


def test_sums_that_would_stop_growing_are_refused(tmp_path):
    workload = masked()

    def narrow(*arguments):
        (total, count), state = workload.loss(*arguments)
        return (total, count.astype(jnp.bfloat16)), state

    some = study(
        bs.Workload(
            name="narrow",
            init=workload.init,
            loss=narrow,
            metrics=workload.metrics,
            data=workload.data,
        ),
        batch_sizes=[4],
    )
    with pytest.raises(ValueError, match=r"of its loss is bfloat16, wanted 32 bits .*jnp\.int32"):
        some.run(tmp_path / "a", progress=False)


@pytest.mark.parametrize("loss", ["cross_entropy", "sigmoid_cross_entropy"])
@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float16, jnp.float32], ids=lambda x: x.__name__
)
@pytest.mark.parametrize("margin", [4, 8, 10])
def test_losses_of_narrow_logits_are_those_of_the_same_numbers(loss, dtype, margin):
    random = np.random.default_rng(0)
    label = random.integers(0, 10, 2000)
    logits = random.normal(size=(2000, 10)) + (margin * 1.5) * np.eye(10)[label]
    logits = np.asarray(jnp.asarray(logits).astype(dtype))
    exact = logits.astype(np.float64)
    if loss == "cross_entropy":
        right = np.log(np.exp(exact).sum(1)) - exact[np.arange(2000), label]
    else:
        label = np.eye(10)[label]
        right = np.log1p(np.exp(np.where(label > 0, -exact, exact)))
    workload = bs.Workload.from_model(
        (lambda key: jnp.eye(10, dtype=dtype), lambda w, x: x @ w),
        {"train": (logits, label.astype(np.int32))},
        loss=loss,
    )
    params, state = workload.init(jax.random.key(0))
    batch = {name: jnp.asarray(x) for name, x in workload.splits()["train"].items()}
    batch = workload.prepare(batch, None)
    for summed, count in (
        workload.metrics(params, state, batch)["loss"],
        workload.loss(params, state, batch, jax.random.key(0), {})[0],
    ):
        assert float(summed) / int(count) == pytest.approx(right.mean(), 1e-5, 2e-7)
