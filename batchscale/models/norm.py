"""Batch norm over groups of a fixed size, so that the objective does not change with batch size."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class GhostBatchNorm(nn.Module):
    """Batch norm of consecutive groups of examples (Hoffer et al. 2017, arXiv:1705.08741).

    Each group of `ghost_batch_size` examples is normalised by its own mean and variance, over its
    examples and pixels; what remains of a batch is a smaller group. So the loss of an example hangs
    on the others of its group alone, at every batch size, and the loss of a batch is the sum of
    those of its groups. Running statistics, by which evaluations normalise, take a step of their
    moving average a group, in the order of the groups: microbatches that hold whole groups change
    neither.

    Args:
      ghost_batch_size: the examples of a group.
      momentum: the share of the running statistics that stays, a group.
      epsilon: added to the variance.

    >>> import jax
    >>> x = jnp.arange(8.0)[:, None]
    >>> norm = GhostBatchNorm(4)
    >>> variables = norm.init(jax.random.key(0), x, train=False)
    >>> y, _ = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    >>> bool(jnp.allclose(y[:4], y[4:], atol=1e-5)), y.shape
    (True, (8, 1))
    """

    ghost_batch_size: int
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *pixels channels"], *, train: bool
    ) -> Float[Array, "batch *pixels channels"]:
        """Normalises, scales and shifts.

        Args:
          x: examples along axis 0, channels along the last.
          train: whether by the statistics of the groups, or by the running ones.
        """
        channels, dtype = x.shape[-1:], jnp.result_type(float)
        scale = self.param("scale", nn.initializers.ones, channels, dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, dtype)
        variance = self.variable("batch_stats", "var", jnp.ones, channels, dtype)
        if not train:
            running = _wide(mean.value, x), _wide(variance.value, x)
            return self._out(self._scaled(x, *running), scale, bias)
        whole = len(x) // self.ghost_batch_size * self.ghost_batch_size
        groups = [x[:whole].reshape(-1, self.ghost_batch_size, *x.shape[1:]), x[None, whole:]]
        normal = []
        for group in groups:
            if not group.size:
                continue
            axes = tuple(range(1, group.ndim - 1))
            means, variances = group.mean(axes, keepdims=True), group.var(axes, keepdims=True)
            normal.append(self._scaled(group, means, variances).reshape(-1, *x.shape[1:]))
            if not self.is_initializing():
                mean.value = self._moved(mean.value, means.reshape(-1, *channels))
                variance.value = self._moved(variance.value, variances.reshape(-1, *channels))
        return self._out(jnp.concatenate(normal), scale, bias)

    def _out(self, x: Array, scale: Array, bias: Array) -> Array:
        return x * _wide(scale, x) + _wide(bias, x)

    def _scaled(self, x: Array, mean: Array, variance: Array) -> Array:
        return (x - mean) / jnp.sqrt(variance + self.epsilon)

    def _moved(
        self, running: Float[Array, " channels"], found: Float[Array, "groups channels"]
    ) -> Float[Array, " channels"]:
        """The moving average after all groups, one by one."""
        after = jnp.arange(len(found) - 1, -1, -1, dtype=found.dtype)
        weights = (1 - self.momentum) * jnp.power(jnp.asarray(self.momentum, found.dtype), after)
        return self.momentum ** len(found) * running + weights @ found


def _wide(of_channels: Float[Array, " channels"], like: Array) -> Array:
    """Numbers of channels with as many axes as an array, for whoever forbids to promote ranks."""
    return of_channels.reshape((1,) * (like.ndim - 1) + (-1,))
