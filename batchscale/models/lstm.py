"""A language model of one LSTM layer with a projection."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from batchscale.models import layers
from batchscale.models.transformer import dropout, shifted


class LSTM(nn.Module):
    """One LSTM layer with a projection (Sak et al. 2014), and logits without biases.

    LSTM-2048-512 of Jozefowicz et al. (2016, arXiv:1602.02410), simplified: the projection of the
    output is what the next step sees and what the logits are made of. Choices, where the account
    of Shallue et al. (2019) is not known: 1 is added to the forget gate; no peepholes; weights are
    LeCun-normal, embeddings normal with a variance of 1 / their width; dropout, off unless it is
    asked for, is on embeddings and outputs.

    Args:
      vocabulary: the number of tokens; 0 is the beginning, and padding.
      embedding: the width of the embeddings.
      units: the cells.
      projection: the width of the output.

    >>> module = LSTM(256, embedding=32, units=64, projection=16)
    >>> tokens = jnp.zeros((3, 10), jnp.int32)
    >>> call = lambda key: module.init_with_output(key, tokens, train=False)
    >>> jax.eval_shape(call, jax.random.key(0))[0].shape
    (3, 10, 256)
    """

    vocabulary: int
    embedding: int
    units: int
    projection: int

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
        dtype, lecun = jnp.result_type(float), nn.initializers.lecun_normal()

        normal = nn.initializers.normal(self.embedding**-0.5)
        embedding = self.param("embedding", normal, (self.vocabulary, self.embedding), dtype)
        gates = 4 * self.units
        into = self.param("into", lecun, (self.embedding, gates), dtype)
        again = self.param("again", lecun, (self.projection, gates), dtype)
        bias = self.param("bias", nn.initializers.zeros, (gates,), dtype)
        out = self.param("out", lecun, (self.units, self.projection), dtype)
        # What does not hang on the step before is one product for all steps.
        embedded = dropout(self, embedding[shifted(tokens)], dropout_rate, train)
        product = layers.fast_dot_general(embedded, into, (((2,), (0,)), ((), ())))
        inputs = product + bias[None, None]
        start = jnp.zeros((len(tokens), self.units), dtype)

        def step(
            state: tuple[Array, Array], x: Float[Array, "batch gates"]
        ) -> tuple[tuple[Array, Array], Array]:
            cell, output = state
            enter, forget, new, leave = jnp.split(x + output @ again, 4, axis=-1)
            cell = jax.nn.sigmoid(forget + 1) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
            output = (jax.nn.sigmoid(leave) * jnp.tanh(cell)) @ out
            return (cell, output), output

        first = start, jnp.zeros((len(tokens), self.projection), dtype)
        _, outputs = jax.lax.scan(step, first, inputs.swapaxes(0, 1))
        logits = nn.Dense(
            self.vocabulary,
            use_bias=False,
            param_dtype=dtype,
            dot_general=layers.fast_dot_general,
            name="logits",
        )
        return logits(dropout(self, outputs.swapaxes(0, 1), dropout_rate, train))
