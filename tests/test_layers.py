import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from batchscale.models import dense, layers
from batchscale.models.convolution import ways as convolution_ways

LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(convolve, strides=(1, 1), padding="SAME", **options):
    options = {"dimension_numbers": LAYOUT, **options}
    return lambda images, kernel: convolve(images, kernel, strides, padding, **options)


def energy(function):
    """A scalar whose gradients and second derivatives are all nonzero."""
    return lambda *operands: jnp.sin(function(*operands)).sum()


def quick_jit(function):
    """A `jit` that spends less on compiling what runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def value_and_gradients(function):
    return quick_jit(
        lambda *x: (function(*x), jax.grad(energy(function), tuple(range(len(x))))(*x))
    )


def operands(image_shape, kernel_shape, dtype=None, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in (image_shape, kernel_shape))


def assert_close(got, wanted, tolerance=1e-10):
    def compare(a, b):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * 10)

    jax.tree.map(compare, got, wanted)


def fast_and_own(**options):
    return (
        convolution(layers.fast_conv_general_dilated, **options),
        convolution(lax.conv_general_dilated, **options),
    )


CONVOLUTIONS = {
    "same": {},
    "valid": {"padding": "VALID"},
    "same, stride 2": {"strides": (2, 2)},
    "valid, stride 3 by 2": {"strides": (3, 2), "padding": "VALID"},
    "explicit": {"padding": ((1, 2), (0, 1))},
    "wider than the kernel": {"padding": [(6, 0), (5, 7)]},
    "cropping": {"padding": ((-1, -2), (0, -1))},
    "wide, stride 2": {"strides": (2, 2), "padding": ((4, 5), (0, 4))},
    "precision": {"precision": "highest"},
}
FALLBACKS = {
    "kernel dilation": {"rhs_dilation": (2, 1)},
    "image dilation": {"lhs_dilation": (1, 2), "padding": ((1, 1), (0, 2))},
    "element type": {"preferred_element_type": jnp.float64},
    "nothing left": {"padding": ((-4, -4), (0, 0))},
}


@pytest.mark.parametrize(
    "options", [*CONVOLUTIONS.values(), *FALLBACKS.values()], ids=[*CONVOLUTIONS, *FALLBACKS]
)
def test_convolution_and_its_gradients_equal_jax_own(options):
    fast, own = fast_and_own(**options)
    with jax.enable_x64(True):
        arrays = operands((3, 8, 9, 2), (4, 3, 2, 5), jnp.float64)
        assert_close(value_and_gradients(fast)(*arrays), value_and_gradients(own)(*arrays))


@pytest.mark.parametrize(
    ("inputs", "outputs", "width", "side", "together"),
    [
        (3, 16, 8, 3, 4),
        (4, 5, 6, 3, 1),  # 6 is no multiple of 4
        (5, 16, 8, 3, 2),
        (16, 16, 6, 5, 2),
        (5, 8, 7, 3, 1),
        (3, 17, 8, 3, 1),
        (8, 8, 8, 2, 1),
    ],
)
def test_convolutions_of_few_filters_take_some_pixels_at_once(
    inputs, outputs, width, side, together
):
    fast, own = fast_and_own()
    with jax.enable_x64(True):
        arrays = operands((2, 5, width, inputs), (side, side, inputs, outputs), jnp.float64)
        assert_close(value_and_gradients(fast)(*arrays), value_and_gradients(own)(*arrays))
        compiled = jax.jit(fast).lower(*arrays).compile().as_text()
    size = rf"size={side}x{side - 1 + together} "
    strided = re.search(rf"window={{{size}[^}}]*stride=1x{together} ", compiled)
    assert bool(strided) == (together > 1), compiled


@pytest.mark.parametrize("examples", [7, 8, 9, 16, 21])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_kernel_gradients_of_many_examples_equal_jax_own(examples, dtype):
    fast, own = fast_and_own(strides=(2, 1))
    with jax.enable_x64(True):
        arrays = operands((examples, 5, 6, 2), (3, 3, 2, 3), dtype)
        got = value_and_gradients(fast)(*arrays)
        wanted = value_and_gradients(own)(*arrays)
        if dtype == "float64":
            assert_close(got, wanted)
        else:
            assert got[1][1].dtype == dtype
            truth = value_and_gradients(own)(*(x.astype("float64") for x in arrays))[1][1]
            error = np.abs(np.asarray(got[1][1], np.float64) - np.asarray(truth)).max()
            assert error < 0.04 * np.abs(truth).max()


@pytest.mark.parametrize(
    ("groups", "channels"), [({"feature_group_count": 2}, 4), ({"batch_group_count": 3}, 2)]
)
def test_convolution_in_groups_equals_jax_own(groups, channels):
    fast, own = fast_and_own(**groups)
    arrays = operands((3, 8, 9, channels), (3, 3, 2, 6))
    assert_close(value_and_gradients(fast)(*arrays), value_and_gradients(own)(*arrays), 1e-6)


@pytest.mark.parametrize(
    ("layout", "image_shape", "kernel_shape", "strides"),
    [
        (("NCHW", "OIHW", "NCHW"), (2, 3, 6, 7), (4, 3, 3, 3), (1, 1)),
        (None, (2, 3, 6, 7), (4, 3, 3, 3), (1, 1)),
        (("NWC", "WIO", "NWC"), (2, 7, 3), (3, 3, 4), (1,)),
    ],
)
def test_convolution_in_another_layout_equals_jax_own(layout, image_shape, kernel_shape, strides):
    fast, own = fast_and_own(dimension_numbers=layout, strides=strides)
    arrays = operands(image_shape, kernel_shape)
    assert_close(value_and_gradients(fast)(*arrays), value_and_gradients(own)(*arrays), 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 4e-2)])
def test_convolution_keeps_the_precision_of_its_operands(dtype, tolerance):
    fast, own = fast_and_own()
    arrays = operands((3, 7, 8, 2), (3, 3, 2, 4), dtype)
    in_float64 = [np.asarray(array, np.float64) for array in arrays]
    with jax.enable_x64(True):
        wanted = value_and_gradients(own)(*(jnp.asarray(array) for array in in_float64))
        wanted = jax.tree.map(np.asarray, wanted)
    got = value_and_gradients(fast)(*arrays)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} == {dtype}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float64), b, rtol=tolerance, atol=tolerance * np.abs(b).max()
        ),
        got,
        wanted,
    )


@settings(deadline=None, max_examples=6)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["SAME", "VALID"])
    | st.tuples(*[st.tuples(st.integers(0, 6), st.integers(0, 6))] * 2),
)
def test_convolution_equals_jax_own_for_any_size(size, kernel, channels, strides, padding):
    fast, own = fast_and_own(strides=strides, padding=padding)
    with jax.enable_x64(True):
        arrays = operands((2, *size, channels[0]), (*kernel, *channels), jnp.float64)
        assert_close(value_and_gradients(fast)(*arrays), value_and_gradients(own)(*arrays))


@pytest.mark.parametrize(
    ("axes", "strides"),
    [((0, 0), (1, 1)), ((0, None), (1, 1)), ((None, 0), (1, 1)), ((1, -1), (2, 2))],
)
def test_lanes_under_vmap_equal_lanes_one_by_one(axes, strides):
    fast, own = fast_and_own(strides=strides)
    with jax.enable_x64(True):
        lanes = [operands((2, 6, 5, 2), (3, 3, 2, 3), jnp.float64, seed) for seed in range(3)]
        arrays = [
            lanes[0][i] if axis is None else jnp.stack([lane[i] for lane in lanes], axis)
            for i, axis in enumerate(axes)
        ]
        got = jax.vmap(value_and_gradients(fast), axes)(*arrays)
        function = value_and_gradients(own)
        one_by_one = [
            function(*(lanes[0][i] if axis is None else lane[i] for i, axis in enumerate(axes)))
            for lane in lanes
        ]
        assert_close(got, jax.tree.map(lambda *x: jnp.stack(x), *one_by_one))


def test_lanes_of_lanes_equal_jax_own():
    fast, own = fast_and_own()
    with jax.enable_x64(True):
        images, kernels = operands((2, 3, 4, 5, 5, 2), (2, 3, 3, 2, 3), jnp.float64)

        def gradients(function):
            per_kernel = jax.vmap(jax.grad(energy(function), (0, 1)), (0, None))
            return quick_jit(jax.vmap(per_kernel))(images, kernels)

        assert_close(gradients(fast), gradients(own))


def descend(function, images, kernel, steps=3):
    gradient = jax.grad(energy(function), 1)
    return lax.fori_loop(0, steps, lambda _, k: k - 0.1 * gradient(images, k), kernel)


def test_training_lanes_in_a_loop_equals_jax_own():
    fast, own = fast_and_own()
    with jax.enable_x64(True):
        images, kernels = operands((3, 2, 6, 5, 2), (3, 3, 3, 2, 2), jnp.float64)
        train = functools.partial(descend, own)
        wanted = jnp.stack([train(*lane) for lane in zip(images, kernels, strict=True)])
        train = functools.partial(descend, fast)
        assert_close(quick_jit(jax.vmap(train))(images, kernels), wanted)
        assert_close(
            jax.jit(lambda *lanes: lax.map(lambda lane: train(*lane), lanes))(images, kernels),
            wanted,
        )


def test_lanes_under_vmap_are_no_grouped_convolution_on_the_cpu():
    fast, _ = fast_and_own()
    images, kernels = operands((3, 2, 6, 5, 2), (3, 3, 3, 2, 2))
    train = jax.jit(jax.vmap(functools.partial(descend, fast)))
    lowered = train.trace(images, kernels).lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" in lowered
    assert "feature_group_count = 3" not in lowered
    assert "feature_group_count = 1" in lowered


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_jax_own_gradients(platform):
    fast, own = fast_and_own()
    arrays = operands((2, 6, 5, 2), (3, 3, 2, 2))

    def layouts(function):
        gradient = jax.jit(jax.grad(energy(function), (0, 1)))
        text = gradient.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        return sorted(re.findall(r"stablehlo.convolution.* dim_numbers = (\S+),", text))

    assert len(layouts(own)) == 3
    assert layouts(fast) == layouts(own)


HESSIAN_VECTOR_PRODUCTS = {
    "forward over reverse": lambda f, at, v: jax.jvp(jax.grad(f), (at,), (v,))[1],
    "reverse over reverse": lambda f, at, v: jax.grad(lambda k: jnp.vdot(jax.grad(f)(k), v))(at),
}


@pytest.mark.parametrize("product", HESSIAN_VECTOR_PRODUCTS.values(), ids=HESSIAN_VECTOR_PRODUCTS)
def test_hessian_vector_products_equal_jax_own(product):
    fast, own = fast_and_own(strides=(2, 1))
    with jax.enable_x64(True):
        images, kernels = operands((3, 2, 5, 6, 2), (3, 3, 3, 2, 2), jnp.float64)

        def products(function):
            def of_lane(images, kernel, direction):
                return product(lambda k: energy(function)(images, k), kernel, direction)

            def of_lanes_and_of_directions(images, kernels, directions):
                over_directions = jax.vmap(functools.partial(of_lane, images[0], kernels[0]))
                return jax.vmap(of_lane)(images, kernels, directions), over_directions(directions)

            return quick_jit(of_lanes_and_of_directions)(images, kernels, kernels**2)

        assert_close(products(fast), products(own))


def test_forward_mode_of_the_convolution_is_refused():
    fast, _ = fast_and_own()
    arrays = operands((2, 5, 6, 2), (3, 3, 2, 2))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(fast, arrays, arrays)


@pytest.mark.parametrize("shared", ["images", "kernel", "neither"])
def test_gradients_in_shard_map_equal_jax_own(shared):
    fast, own = fast_and_own()
    mesh = jax.make_mesh((len(jax.devices()),), ("device",), axis_types=(AxisType.Auto,))
    images, kernel = operands((len(jax.devices()), 2, 6, 5, 2), (len(jax.devices()), 3, 3, 2, 2))
    specs = [P() if shared == name else P("device") for name in ("images", "kernel")]
    arrays = [x[:1] if spec == P() else x for x, spec in zip((images, kernel), specs, strict=True)]

    def gradients(function):
        def of_shard(images, kernel):
            return jax.grad(energy(function), (0, 1))(images[0], kernel[0])

        out_specs = tuple(P() if spec == P() else P("device") for spec in specs)
        mapped = jax.shard_map(of_shard, mesh=mesh, in_specs=tuple(specs), out_specs=out_specs)
        return quick_jit(mapped)(*arrays)

    assert_close(gradients(fast), gradients(own), 1e-5)


def with_ties(shape, dtype="float32"):
    """Small whole numbers, so that most windows have several maxima."""
    return jnp.asarray(np.random.default_rng(0).integers(-2, 2, shape), dtype)


POOLS = {
    "even": ((2, 6, 4, 3), (2, 2), (2, 2), "VALID"),
    "valid crops": ((2, 7, 5, 3), (2, 3), (2, 3), "VALID"),
    "same pads": ((2, 7, 5, 3), (3, 4), (3, 4), "SAME"),
    "explicit": ((2, 5, 6, 3), (3, 2), (3, 2), ((1, 2), (0, 1))),
    "larger than the image": ((2, 3, 2, 1), (5, 4), (5, 4), "SAME"),
    "no window fits": ((2, 3, 2, 1), (4, 2), (4, 2), "VALID"),
    "one dimension": ((2, 7, 3), (2,), (2,), "VALID"),
    "no batch": ((4, 6, 3), (2, 2), (2, 2), "VALID"),
    "two batch dimensions": ((2, 3, 4, 6, 3), (2, 2), (2, 2), "VALID"),
    "overlapping": ((2, 6, 5, 3), (3, 3), (2, 2), "SAME"),
    "gaps": ((2, 8, 7, 3), (2, 1), (3, 3), "VALID"),
    "overlapping in one direction": ((2, 6, 5, 3), (2, 2), (1, 2), ((0, 1), (1, 0))),
    "many places": ((1, 17, 16, 1), (16, 16), (16, 16), "SAME"),
    "default strides": ((2, 6, 5, 3), (2, 2), None, "VALID"),
}


@pytest.mark.parametrize(("shape", "window", "strides", "padding"), POOLS.values(), ids=POOLS)
def test_max_pool_and_its_gradient_equal_flax_own(shape, window, strides, padding):
    images = with_ties(shape)
    got, wanted = (
        value_and_gradients(lambda x, f=f: f(x, window, strides, padding))(images)
        for f in (layers.max_pool, nn.max_pool)
    )
    assert_close(got, wanted, 1e-6)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "int32"])
def test_max_pool_keeps_the_type(dtype):
    with jax.enable_x64(True):
        images = with_ties((2, 5, 4, 3), dtype)
        got, wanted = (pool(images, (2, 2), (2, 2)) for pool in (layers.max_pool, nn.max_pool))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, wanted)


@settings(deadline=None, max_examples=6)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from(["SAME", "VALID"]),
)
def test_max_pool_equals_flax_own_for_any_size(size, window, padding):
    images = with_ties((2, *size, 2))
    got, wanted = (
        value_and_gradients(lambda x, f=f: f(x, window, window, padding))(images)
        for f in (layers.max_pool, nn.max_pool)
    )
    assert_close(got, wanted, 1e-6)


def test_max_pool_gives_the_gradient_of_a_tie_to_its_first_maximum():
    images = jnp.array([[3.0, 3.0, 0.0, 1.0], [3.0, 3.0, 2.0, 2.0]])[..., None]
    gradient = jax.grad(lambda x: layers.max_pool(x, (2, 2), (2, 2)).sum())(images)
    np.testing.assert_array_equal(gradient[..., 0], [[1, 0, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 1)])
def test_max_pool_keeps_nan(place):
    images = jnp.zeros((4, 4, 1)).at[place].set(jnp.nan)
    pooled = layers.max_pool(images, (2, 2), (2, 2))
    np.testing.assert_array_equal(jnp.isnan(pooled[..., 0]), [[True, False], [False, False]])


def test_max_pool_of_lanes_in_a_loop_equals_flax_own():
    def climb(pool, images):
        gradient = jax.grad(energy(lambda x: pool(x, (2, 2), (2, 2))))
        return lax.fori_loop(0, 3, lambda _, x: x + 0.1 * gradient(x), images)

    images = with_ties((3, 2, 6, 5, 2))
    got, wanted = (
        jax.jit(jax.vmap(functools.partial(climb, pool)))(images)
        for pool in (layers.max_pool, nn.max_pool)
    )
    assert_close(got, wanted, 1e-6)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 2)])
def test_max_pool_leaves_reduce_window(strides):
    pool = energy(lambda x: layers.max_pool(x, (2, 2), strides))
    lowered = jax.jit(jax.grad(pool)).lower(jnp.zeros((2, 6, 6, 3))).as_text()
    assert "stablehlo.select_and_scatter" not in lowered
    assert "stablehlo.reduce_window" not in lowered


@pytest.mark.parametrize("strides", [(2, 2), (1, 2)])
def test_second_derivatives_of_max_pool_equal_flax_own(strides):
    def product(pool, kind, images, direction):
        return HESSIAN_VECTOR_PRODUCTS[kind](
            energy(lambda x: pool(x, (2, 2), strides)), images, direction
        )

    with jax.enable_x64(True):
        some = operands((2, 6, 5, 3), (2, 6, 5, 3), jnp.float64)
        wanted = product(nn.max_pool, "reverse over reverse", *some)
        for kind in HESSIAN_VECTOR_PRODUCTS:
            assert_close(product(layers.max_pool, kind, *some), wanted)


@pytest.mark.parametrize("way", ["examples", "mapped", "grouped", "patches"])
def test_every_way_to_convolve_gives_jax_own_gradients(way):
    fast, own = fast_and_own(strides=(2, 1), padding=((2, 1), (0, 1)))
    with jax.enable_x64(True):
        lanes = operands((3, 9, 6, 5, 2), (3, 3, 3, 2, 3), jnp.float64)
        with convolution_ways(cpu=way):
            got = jax.vmap(value_and_gradients(fast))(*lanes)
        assert_close(got, jax.vmap(value_and_gradients(own))(*lanes))


def test_the_way_to_convolve_is_what_it_was_afterwards():
    def traced():
        fast, _ = fast_and_own()
        return str(jax.make_jaxpr(fast)(*operands((2, 5, 5, 1), (3, 3, 1, 2))))

    before = traced()
    with convolution_ways(cpu="patches"):
        assert "concatenate" in traced()
    assert "concatenate" not in before
    assert "concatenate" not in traced()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 0.9])
def test_dropout_keeps_the_mean_and_drops_the_rate(rate):
    count = 200_000
    x = jax.jit(layers.dropout)(jnp.full(count, 3.0), rate, jax.random.key(1))
    kept = np.asarray(x) != 0
    np.testing.assert_allclose(np.asarray(x)[kept], 3 / (1 - rate), rtol=1e-6)
    deviation = np.sqrt(rate * (1 - rate) / count)
    assert abs(kept.mean() - (1 - rate)) <= 5 * deviation
    assert abs(x.mean() - 3) <= 3 * 5 * deviation / (1 - rate) + 1e-4


def test_dropout_of_lanes_with_their_own_rates_equals_lanes_one_by_one():
    rates, x = jnp.array([0.0, 0.4, 0.8]), jnp.linspace(1.0, 2.0, 50)
    keys = jax.random.split(jax.random.key(0), 3)
    got = jax.jit(jax.vmap(layers.dropout, (None, 0, 0)))(x, rates, keys)
    wanted = jnp.stack([layers.dropout(x, *lane) for lane in zip(rates, keys, strict=True)])
    assert_close(got, wanted, 1e-6)
    np.testing.assert_array_equal(got[0], x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_keeps_the_type(dtype):
    assert layers.dropout(jnp.ones(3, dtype), jnp.float32(0.4), jax.random.key(0)).dtype == dtype


MATRIX_PRODUCT = (((1,), (0,)), ((), ()))


def product(multiply):
    return lambda rows, weights: multiply(rows, weights, MATRIX_PRODUCT)


@pytest.mark.parametrize("examples", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("lanes", [None, 2])
def test_products_of_few_examples_and_their_gradients_equal_jax_own(examples, lanes):
    with jax.enable_x64(True):
        shapes = (examples, 5), (5, 4)
        some = operands(*((lanes, *shape) if lanes else shape for shape in shapes))
        got, wanted = (
            value_and_gradients(jax.vmap(product(multiply)) if lanes else product(multiply))(*some)
            for multiply in (layers.fast_dot_general, lax.dot_general)
        )
        assert_close(got, wanted)


@pytest.mark.parametrize("lanes", [None, 2])
def test_products_of_large_weights_and_their_gradients_equal_jax_own(lanes, monkeypatch):
    monkeypatch.setattr(dense, "_LARGE", 1000)
    with jax.enable_x64(True):
        shapes = (9, 32), (32, 5)
        some = operands(*((lanes, *shape) if lanes else shape for shape in shapes))
        got, wanted = (
            value_and_gradients(jax.vmap(product(multiply)) if lanes else product(multiply))(*some)
            for multiply in (layers.fast_dot_general, lax.dot_general)
        )
        assert_close(got, wanted)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_few_examples_are_summed_as_outer_products_on_the_cpu_alone(platform):
    def products(multiply, examples):
        gradient = jax.jit(jax.grad(energy(product(multiply)), (0, 1)))
        traced = gradient.trace(*operands((examples, 5), (5, 4)))
        return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.dot_general")

    own = products(lax.dot_general, 4)
    assert own == 3
    assert products(layers.fast_dot_general, 4) == own - (platform == "cpu")
    for examples in (1, 2, 9):
        assert products(layers.fast_dot_general, examples) == own


def test_second_derivatives_of_a_product_of_few_examples_equal_jax_own():
    with jax.enable_x64(True):
        some = operands((4, 5), (5, 4))
        got, wanted = (
            jax.jvp(jax.grad(energy(product(multiply)), (0, 1)), some, some)
            for multiply in (layers.fast_dot_general, lax.dot_general)
        )
        assert_close(got, wanted)


@pytest.mark.parametrize(
    ("shapes", "numbers"),
    [
        (((4, 5), (4, 5)), (((1,), (1,)), ((), ()))),
        (((2, 4, 5), (5, 3)), (((2,), (0,)), ((), ()))),
        (((4, 5, 3), (4, 3, 2)), (((2,), (1,)), ((0,), (0,)))),
    ],
)
def test_other_products_are_jax_own(shapes, numbers):
    some = operands(*shapes)
    got = layers.fast_dot_general(*some, numbers)
    np.testing.assert_array_equal(got, lax.dot_general(*some, numbers))


def test_products_in_shard_map_have_jax_own_gradients():
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,))
    rows, weights = operands((8, 5), (5, 4))

    def gradient(multiply):
        def loss(rows, weights):
            return energy(product(multiply))(rows, weights)[None]

        mapped = jax.shard_map(
            loss, mesh=mesh, in_specs=(P("devices"), P()), out_specs=P("devices")
        )
        return jax.jit(jax.grad(lambda *x: mapped(*x).sum(), (0, 1)))(rows, weights)

    assert_close(gradient(layers.fast_dot_general), gradient(lax.dot_general), 1e-5)
