"""Decoder-only Transformers: language models of tokens, each predicted from those before it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from batchscale.models import layers

_Hidden = Float[Array, "batch length width"]


def shifted(tokens: Int[Array, "batch length"]) -> Int[Array, "batch length"]:
    """The tokens before each: one place to the right, with 0 for the beginning.

    >>> shifted(jnp.array([[5, 6, 7]])).tolist()
    [[0, 5, 6]]
    """
    return jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]


def dropout(module: nn.Module, x: _Hidden, rate: float | Float[Array, ""], train: bool) -> _Hidden:
    """Dropout by the randomness of a module; none in evaluation, nor where the rate is 0.0."""
    if not train or (isinstance(rate, float) and rate == 0):
        return x
    return layers.dropout(x, rate, module.make_rng("dropout"))


class Transformer(nn.Module):
    """The decoder of Vaswani et al. (2017) without an encoder, as a language model.

    Sinusoidal positions, causal attention, and embeddings that are shared with the logits, scaled
    by the root of the width on the way in. Choices, where the account of Shallue et al. (2019) is
    not known: normalisation comes before each sublayer and once at the end; projections of the
    attention have no biases; embeddings are normal with a variance of 1 / width, other weights
    LeCun-normal; dropout, off unless it is asked for, is on embeddings and on what sublayers add.

    Args:
      vocabulary: the number of tokens; 0 is the beginning, and padding.
      layers: the blocks of attention and feed-forward.
      width: of the embeddings.
      heads: of the attention; they divide the width.
      hidden: the ReLU units of a feed-forward layer.

    >>> module = Transformer(256, layers=2, width=64, heads=4, hidden=256)
    >>> tokens = jnp.zeros((3, 10), jnp.int32)
    >>> call = lambda key: module.init_with_output(key, tokens, train=False)
    >>> jax.eval_shape(call, jax.random.key(0))[0].shape
    (3, 10, 256)
    """

    vocabulary: int
    layers: int
    width: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        train: bool,
        dropout_rate: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, "batch length vocabulary"]:
        """Maps tokens to logits: those at a place are of the token there, by those before it.

        Args:
          tokens: of each sequence.
          train: whether dropout is on; if so, the "dropout" randomness is needed where the rate is
            not the number 0.
          dropout_rate: the probability of dropping a unit, in [0, 1).
        """
        dtype = jnp.result_type(float)
        if self.width % self.heads:
            raise ValueError(
                f"heads: got {self.heads}, which do not divide the width of {self.width}. "
                "Take a number of heads that does, or another width."
            )

        def dropped(x: _Hidden) -> _Hidden:
            return dropout(self, x, dropout_rate, train)

        normal = nn.initializers.normal(self.width**-0.5)
        embedding = self.param("embedding", normal, (self.vocabulary, self.width), dtype)
        x = embedding[shifted(tokens)] * jnp.asarray(math.sqrt(self.width), dtype)
        x = dropped(x + jnp.asarray(_positions(tokens.shape[1], self.width), dtype)[None])
        for layer in range(self.layers):
            block = _Attention(self.heads, name=f"attention_{layer}")
            x = x + dropped(block(_norm(f"attention_norm_{layer}")(x)))
            y = _norm(f"feed_forward_norm_{layer}")(x)
            y = nn.relu(_dense(self.hidden, name=f"hidden_{layer}")(y))
            x = x + dropped(_dense(self.width, name=f"out_{layer}")(y))
        return layers.fast_dot_general(_norm("norm")(x), embedding.T, (((2,), (0,)), ((), ())))


def _dense(features: int, *, name: str, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=use_bias,
        param_dtype=jnp.result_type(float),
        dot_general=layers.fast_dot_general,
        name=name,
    )


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(param_dtype=jnp.result_type(float), name=name)


class _Attention(nn.Module):
    """Causal attention of several heads."""

    heads: int

    @nn.compact
    def __call__(self, x: _Hidden) -> _Hidden:
        length, width = x.shape[1:]
        size = width // self.heads
        wide = _dense(3 * width, use_bias=False, name="query_key_value")(x)
        wide = wide.reshape(-1, length, 3, self.heads, size)
        query, key, value = (wide[:, :, part] for part in range(3))
        scores = jnp.einsum("bqhs,bkhs->bhqk", query, key) / math.sqrt(size)
        causal = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(causal[None, None], scores, -jnp.inf))
        mixed = jnp.einsum("bhqk,bkhs->bqhs", weights, value).reshape(-1, length, width)
        return _dense(width, use_bias=False, name="out")(mixed)


def _positions(length: int, width: int) -> Float[np.ndarray, "length width"]:
    """Sines, then cosines, of wavelengths from 2 pi to 10,000 times that."""
    rates = 10_000.0 ** -(np.arange(width // 2) / max(width // 2 - 1, 1))
    angles = np.arange(length)[:, None] * rates
    table = np.zeros((length, width))
    table[:, : width // 2], table[:, width // 2 : 2 * (width // 2)] = np.sin(angles), np.cos(angles)
    return table
