"""Batches without replacement."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscale import sampling
from batchscale.sampling import Position


@functools.partial(jax.jit, static_argnums=(0,))
def whole_batch(examples: int, key: jax.Array, place: Position) -> jax.Array:
    """The batch of all examples that begins at a place."""
    return sampling.indices(key, place, jnp.arange(examples), examples=examples)


@functools.partial(jax.jit, static_argnums=(0,))
def stretch(examples: int, key: jax.Array, place: Position) -> jax.Array:
    """Three hundred draws from a place on, over as many epochs as they take."""
    return sampling.indices(key, place, jnp.arange(300), examples=examples)


def draw(key: int, step: int, batch_size: int, examples: int) -> list[int]:
    """The batch of one step, drawn alone."""
    place = sampling.position(step, batch_size=batch_size, examples=examples)
    return whole_batch(examples, np.array([key, 7], np.uint32), place)[:batch_size].tolist()


@given(
    examples=st.sampled_from([1, 2, 3, 10, 16, 23, 40]),
    share=st.floats(0, 1),
    key=st.integers(0, 2**32 - 1),
    epochs=st.integers(1, 3),
)
@settings(deadline=None, max_examples=100)
def test_every_epoch_is_a_permutation_whatever_the_batch_size(examples, share, key, epochs):
    batch_size = 1 + round(share * (examples - 1))
    steps = -(-epochs * examples // batch_size)
    stream = [i for step in range(steps) for i in draw(key, step, batch_size, examples)]
    for epoch in range(epochs):
        part = stream[epoch * examples : (epoch + 1) * examples]
        assert sorted(part) == list(range(examples))


@pytest.mark.parametrize("examples", [997, 1024, 1100, 55_000])
def test_an_epoch_of_a_large_set_is_a_permutation(examples):
    epoch = draw(3, 5, examples, examples)
    assert sorted(epoch) == list(range(examples))
    assert epoch != list(range(examples))


def test_epochs_and_keys_are_shuffled_differently():
    first, second, other = draw(1, 0, 50, 50), draw(1, 1, 50, 50), draw(2, 0, 50, 50)
    assert first != second
    assert first != other


def test_a_microbatch_is_its_part_of_the_batch():
    key, place = jnp.array([1, 2], jnp.uint32), sampling.position(7, batch_size=12, examples=50)
    whole = sampling.indices(key, place, jnp.arange(12), examples=50)
    parts = [sampling.indices(key, place, i + jnp.arange(4), examples=50) for i in (0, 4, 8)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@given(
    examples=st.sampled_from([1, 7, 40, 100]),
    first=st.integers(0, 10**9),
    size=st.integers(1, 300),
)
@settings(deadline=None, max_examples=50)
def test_a_draw_over_several_epochs_is_one_epoch_after_the_other(examples, first, size):
    key = np.array([5, 7], np.uint32)
    place = sampling.position(first, batch_size=1, examples=examples)
    drawn = stretch(examples, key, place)
    for at in {0, size // 2, size - 1}:
        epoch, offset = divmod(first + at, examples)
        alone = whole_batch(examples, key, Position(np.int32(epoch), np.int32(offset)))
        assert drawn[at] == alone[0]


@pytest.mark.parametrize("examples", [10, 100, 1100])
def test_positions_and_neighbours_are_uniform(examples):
    keys = jax.random.bits(jax.random.key(1), (20_000 if examples == 10 else 2_000, 2), jnp.uint32)
    shuffle = jax.vmap(
        lambda key: sampling.indices(key, Position(0, 0), jnp.arange(examples), examples=examples)
    )
    epochs = np.asarray(jax.jit(shuffle)(keys))
    first = np.bincount(epochs[:, 0], minlength=examples)
    apart = np.bincount(((epochs[:, 1:] - epochs[:, :-1]) % examples).ravel(), minlength=examples)
    assert scipy.stats.chisquare(first).pvalue > 1e-3
    assert scipy.stats.chisquare(apart[1:]).pvalue > 1e-3
