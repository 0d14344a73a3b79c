import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from batchscale import models

FORMS = (
    "fc_<width>[_<width>...], simple_cnn_base, simple_cnn_narrow, simple_cnn_wide, resnet_8, "
    "resnet_50, vgg_11, lstm, lstm_tiny, transformer_base, transformer_shallow, "
    "transformer_narrow_and_shallow, transformer_wide, transformer_tiny"
)


class OwnCNN(nn.Module):
    """The Simple CNN with none of our layers."""

    filters: tuple[int, int]
    units: int

    @nn.compact
    def __call__(self, x, *, dtype):
        for number, filters in enumerate(self.filters):
            x = nn.Conv(filters, (5, 5), param_dtype=dtype, name=f"Conv_{number}")(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.units, param_dtype=dtype)(x))
        return nn.Dense(10, param_dtype=dtype)(x)


def images(batch_size=3, size=28, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(batch_size, size, size, 1)))


def variables_of(module, x, lanes=()):
    """Random numbers in place of an initialisation, which takes seconds to compile."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.2, (*lanes, *leaf.shape)), leaf.dtype),
        shapes,
    )


def quick_jit(function):
    """A `jit` that spends less on compiling what runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def cross_entropy(logits):
    return -nn.log_softmax(logits)[:, 3].mean()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("fc_1024", 814_090),
        ("fc_1024_1024", 1_863_690),
        ("fc_1024_1024_1024", 2_913_290),
        ("fc_2048_2048_2048", 10_020_874),
        ("fc_512_512_512", 932_362),
        ("fc_256_256_256", 335_114),
        ("fc_128_128_128", 134_794),
        ("fc_64_64_64", 59_210),
        ("simple_cnn_base", 3_274_634),
        ("simple_cnn_narrow", 25 * 16 + 16 + 25 * 16 * 32 + 32 + 49 * 32 * 512 + 512 + 5_130),
        ("simple_cnn_wide", 25 * 64 + 64 + 25 * 64 * 128 + 128 + 49 * 128 * 2048 + 2048 + 20_490),
    ],
)
def test_models_have_the_published_number_of_parameters(name, count):
    module = models.get(name, classes=10)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images(), train=False))
    assert models.parameter_count(shapes["params"]) == count


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("name", ["fc_5", "simple_cnn_narrow"])
def test_logits_are_one_a_class(name, classes):
    module = models.get(name, classes)
    out, _ = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), images(4, 9), train=False)
    )
    assert out.shape == (4, classes)


@pytest.mark.parametrize(
    "name", ["fc", "fc_", "fc_0", "fc_012", "fc_1_", "fc_-3", "fc_a", "FC_3", "simple_cnn", "", "x"]
)
def test_an_unknown_name_is_refused_with_the_known_forms(name):
    with pytest.raises(ValueError, match="name") as error:
        models.get(name, classes=10)
    assert str(error.value) == (
        f"name: {name!r} is not a model. Use one of {FORMS}, such as "
        '"fc_128_128_128"; widths are positive whole numbers.'
    )


def test_fewer_than_two_classes_are_refused():
    with pytest.raises(ValueError, match="classes") as error:
        models.get("fc_3", classes=1)
    assert str(error.value) == "classes: got 1, wanted an integer, 2 or more."


def test_every_name_without_a_placeholder_is_a_model():
    names = [name for name in models.names() if "<" not in name]
    assert len(names) == 13
    assert {type(models.get(name, 10)) for name in names} == {
        *(models.SimpleCNN, models.ResNet8, models.ResNet50, models.VGG11),
        *(models.LSTM, models.Transformer),
    }


@pytest.mark.parametrize("name", ["fc_1024", "simple_cnn_narrow"])
def test_weights_are_lecun_normal_and_biases_zero(name):
    init = functools.partial(models.get(name, 10).init, train=False)
    params = quick_jit(init)(jax.random.key(0), images())["params"]
    for layer in params.values():
        np.testing.assert_array_equal(layer["bias"], 0)
        kernel = np.asarray(layer["kernel"], np.float64)
        fan_in, count = kernel[..., 0].size, kernel.size
        # The variance estimate of a normal distribution cut at two deviations is surer than that
        # of a whole one, whose relative deviation is sqrt(2 / count).
        assert kernel.var() * fan_in == pytest.approx(1, abs=5 * np.sqrt(2 / count))
        assert kernel.mean() * np.sqrt(fan_in) == pytest.approx(0, abs=5 / np.sqrt(count))


@pytest.mark.parametrize("name", ["fc_5", "simple_cnn_narrow"])
@pytest.mark.parametrize("x64", [False, True])
def test_parameters_follow_the_x64_mode(name, x64):
    with jax.enable_x64(x64):
        variables = jax.eval_shape(
            lambda: models.get(name, 10).init(
                jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False
            )
        )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {
        "float64" if x64 else "float32"
    }


def test_perceptron_equals_numpy():
    with jax.enable_x64(True):
        x = images()
        module = models.get("fc_7_5", 10)
        variables = variables_of(module, x)
        wanted = np.asarray(x).reshape(3, -1)
        layers = [variables["params"][f"Dense_{number}"] for number in range(3)]
        for layer in layers:
            hidden = wanted @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
            wanted = np.maximum(hidden, 0)
        np.testing.assert_allclose(module.apply(variables, x), hidden, rtol=1e-12)


def test_simple_cnn_and_its_gradients_equal_flax_own_layers():
    with jax.enable_x64(True):
        x = images(size=13)
        module = models.SimpleCNN(filters=(3, 4), units=6, classes=10)
        params = variables_of(module, x)["params"]
        own = OwnCNN(filters=(3, 4), units=6)

        def got(params):
            return cross_entropy(module.apply({"params": params}, x, train=False))

        def wanted(params):
            return cross_entropy(own.apply({"params": params}, x, dtype=jnp.float64))

        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
            quick_jit(jax.value_and_grad(got))(params),
            quick_jit(jax.value_and_grad(wanted))(params),
        )


def test_lanes_in_a_loop_equal_lanes_one_by_one():
    module = models.SimpleCNN(filters=(2, 3), units=4, classes=10)

    def train(variables, x, key, rate):
        def loss(variables, step):
            rngs = {"dropout": jax.random.fold_in(key, step)}
            logits = module.apply(variables, x, train=True, dropout_rate=rate, rngs=rngs)
            return cross_entropy(logits)

        def step(step, variables):
            return jax.tree.map(lambda w, g: w - g, variables, jax.grad(loss)(variables, step))

        return jax.lax.fori_loop(0, 2, step, variables)

    with jax.enable_x64(True):
        x = images(6, size=6).reshape(3, 2, 6, 6, 1)
        variables = variables_of(module, x[0], lanes=(3,))
        lanes = (variables, x, jax.random.split(jax.random.key(1), 3), jnp.array([0.0, 0.2, 0.4]))
        got = quick_jit(jax.vmap(train))(*lanes)
        alone = quick_jit(train)
        for number in range(3):
            pick = functools.partial(jax.tree.map, lambda leaf, number=number: leaf[number])
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
                pick(got),
                alone(*pick(lanes)),
            )


@pytest.fixture(scope="module")
def narrow():
    x = images(size=8)
    module = models.get("simple_cnn_narrow", 10)
    return module, variables_of(module, x), x


def test_dropout_is_off_at_evaluation(narrow):
    module, variables, x = narrow
    evaluated = module.apply(variables, x, train=False)
    for rate in (0.4, 0.9):
        again = module.apply(
            variables, x, train=False, dropout_rate=rate, rngs={"dropout": jax.random.key(1)}
        )
        np.testing.assert_array_equal(evaluated, again)
    undropped = module.apply(
        variables, x, train=True, dropout_rate=0.0, rngs={"dropout": jax.random.key(1)}
    )
    np.testing.assert_allclose(evaluated, undropped, rtol=1e-6)


def test_dropout_in_training_keeps_the_mean_logit(narrow):
    module, variables, x = narrow
    keys = jax.random.split(jax.random.key(0), 2000)
    train = jax.jit(
        jax.vmap(lambda key: module.apply(variables, x, train=True, rngs={"dropout": key}))
    )
    logits = np.asarray(train(keys))
    deviation = logits.std(0) / np.sqrt(len(keys))
    assert (logits.std(0) > 0).all()
    evaluated = np.asarray(module.apply(variables, x, train=False))
    assert (np.abs(logits.mean(0) - evaluated) < 5 * deviation).all()


def test_dropout_rate_may_be_traced(narrow):
    module, variables, x = narrow
    apply = functools.partial(
        module.apply, variables, x, train=True, rngs={"dropout": jax.random.key(1)}
    )
    traced = jax.jit(lambda rate: apply(dropout_rate=rate))
    np.testing.assert_allclose(traced(0.4), apply(), rtol=1e-5, atol=1e-6)
    assert not np.allclose(traced(0.2), traced(0.4))


def test_training_without_dropout_randomness_is_refused(narrow):
    module, variables, x = narrow
    with pytest.raises(Exception, match="dropout"):
        module.apply(variables, x, train=True)


def test_parameter_count_of_an_empty_tree_is_zero():
    assert models.parameter_count({}) == 0
