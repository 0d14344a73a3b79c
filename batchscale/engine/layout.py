"""How trials are packed on a device: how many at once, and how much of a batch at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from batchscale import arrays, columns, keys
from batchscale.workloads import Workload

# Choices, from measurements on two CPU cores; both numbers can be fixed in the study.
_CPU_LANES = 16
_CPU_WEIGHT_BYTES = 2_500_000  # of the weights of all lanes: with their gradients, a core's cache
_ACCELERATOR_LANES = 64
_CPU_MICROBATCH = 256  # larger ones were slower, and each size is a program to compile
# Of sequences so many tokens: what is kept of more of them does not fit a core's cache.
_CPU_TOKENS, _CPU_EVALUATED_TOKENS = 1024, 2048
_BATCH_BYTES = 16_000_000
_CONVOLUTION_MICROBATCH, _LIGHT_MICROBATCH = 64, 16  # the latter where all weights fit a cache
_SHARED_WEIGHT_BYTES = 100_000  # of a trial; a loop costs digits nothing that shows, MNIST 20%
_EVALUATION_BATCH = 500
_SHORT_BATCH = 125
_NARROW_MICROBATCH = 64  # sums of more numbers of 16 bits stop growing, at 256 in bfloat16
_SMALL_MICROBATCH = 16  # memory is saved in the batch down to here, and in lanes then


class Layout(NamedTuple):
    """How the trials of a batch size are packed: chosen before its first step, kept in the plan.

    Attributes:
      lanes: trials vmapped together on a device.
      microbatch: examples whose gradient is taken at once.
      evaluation_lanes: trials vmapped together on a device where they are evaluated; a divisor of
        `lanes`. Those that are evaluated together stop together.
      shared: whether a batch of one microbatch is trained by the program of several, so that batch
        sizes share it.
    """

    lanes: int
    microbatch: int
    evaluation_lanes: int = 1
    shared: bool = False

    def with_lanes(self, lanes: int) -> Layout:
        """The layout with another number of lanes.

        >>> Layout(8, 64, evaluation_lanes=8).with_lanes(4)
        Layout(lanes=4, microbatch=64, evaluation_lanes=4, shared=False)
        """
        together = 1 if self.evaluation_lanes == 1 else lanes
        return self._replace(lanes=lanes, evaluation_lanes=together)

    def uncut(self, batch_size: int) -> Layout:
        """The layout with the whole batch as its microbatch.

        Where the loss of an example depends on the others, a part of a batch is another objective.

        Args:
          batch_size: that is packed so.

        >>> Layout(2, 16).uncut(100)
        Layout(lanes=2, microbatch=100, evaluation_lanes=1, shared=False)
        """
        return self._replace(microbatch=batch_size, shared=False)

    def smaller(self, group: int = 1) -> Layout | None:
        """A layout that needs less memory; None if there is none.

        Args:
          group: examples that are not cut apart, such as a ghost batch.

        >>> Layout(2, 32).smaller()
        Layout(lanes=2, microbatch=16, evaluation_lanes=1, shared=False)
        >>> Layout(2, 16).smaller()
        Layout(lanes=1, microbatch=16, evaluation_lanes=1, shared=False)
        >>> Layout(1, 1).smaller() is None
        True
        >>> Layout(1, 96).smaller(group=32)
        Layout(lanes=1, microbatch=32, evaluation_lanes=1, shared=False)
        >>> Layout(1, 32).smaller(group=32) is None
        True
        """
        group = 1 if self.microbatch % group else group  # one that is cut already
        least = 1 if self.lanes == 1 else _SMALL_MICROBATCH
        if self.microbatch > max(least, group):
            half = self.microbatch // 2
            return self._replace(microbatch=max(half // group * group, min(half, group)))
        return self.with_lanes(self.lanes // 2) if self.lanes > 1 else None

    def sharing(self, batch_size: int) -> Layout:
        """The layout whose program batch sizes share: its microbatch is a power of four.

        It is left as it is where batches are of several microbatches, whose program is shared
        already, and where no such power divides the batch and is at least half of it.

        Args:
          batch_size: that is packed so.

        >>> [Layout(4, min(size, 32)).sharing(size).microbatch for size in (1, 2, 4, 8, 24, 32, 64)]
        [1, 1, 4, 4, 24, 16, 32]
        """
        power = 1
        while 4 * power <= self.microbatch:
            power *= 4
        if batch_size > self.microbatch or batch_size % power or 2 * power < batch_size:
            return self
        return self._replace(microbatch=power, shared=True)


LayoutOf = Callable[[int, Mesh], Layout]
"""How the trials of a batch size are packed on a mesh."""

columns.declare("layouts", "batch_size", *Layout._fields, "why")


def choose(
    workload: Workload,
    *,
    cpu: bool,
    batch_size: int,
    trials: int,
    lanes: int | None = None,
    microbatch: int | None = None,
) -> Layout:
    """A layout for a batch size on this kind of device, whatever their number.

    Args:
      workload: what is trained. Models that convolve run one lane at a time on a CPU, in small
        microbatches: a convolution vmapped over kernels is slow there.
      cpu: whether the devices are CPUs.
      batch_size: examples a step.
      trials: feasible trials wanted.
      lanes: fixed by the user, or None.
      microbatch: fixed by the user, or None. The gradient of a microbatch is a sum in the types of
        the model, so that parameters of 16 bits have small ones.
    """
    if lanes is None:
        # On a CPU at most a quarter of the trials, so that several cores find work.
        most, share = (_cpu_lanes(workload), 4) if cpu else (_ACCELERATOR_LANES, 1)
        lanes = min(most, -(-trials // share))
    if microbatch is None:
        if cpu:
            most = _CPU_MICROBATCH
            if _convolves(workload):
                light = _weight_bytes(workload) <= _CPU_WEIGHT_BYTES
                most = _LIGHT_MICROBATCH if light else _CONVOLUTION_MICROBATCH
            most = min(most, max(_CPU_TOKENS // arrays.elements(workload.splits()["train"]), 1))
        else:
            train = workload.splits()["train"]
            one = sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(train)) * 4
            most = max(1, _BATCH_BYTES // (lanes * one))
        if any(x.dtype.itemsize < 4 for x in jax.tree.leaves(_parameters(workload))):
            most = min(most, _NARROW_MICROBATCH)
        group = workload.ghost_batch_size or 1
        microbatch = group * _even(-(-batch_size // group), max(most // group, 1))
    return Layout(lanes, min(microbatch, batch_size), 1 if cpu else lanes)


def worth_sharing(workload: Workload, *, cpu: bool) -> bool:
    """Whether batch sizes had better share programs, as `Layout.sharing` lets them.

    To compile one takes a third of a second, and a model as small as digits' trains for less.

    Args:
      workload: what is trained.
      cpu: whether the devices are CPUs; where they are not, a loop waits for the host.
    """
    return cpu and _weight_bytes(workload) <= _SHARED_WEIGHT_BYTES


def evaluation_batch(
    examples: int, *, enough: int | None = None, tokens: int = 1, cpu: bool = False
) -> int:
    """Examples evaluated at once, a divisor of the split if one is near: one program less.

    Args:
      examples: of the split.
      enough: where an evaluation may end early, how many mistakes end it: most examples that come
        first are mistakes, so that a third more than so many are likely to do.

      tokens: of an example, as of `arrays.elements`.
      cpu: whether the devices are CPUs, on which long sequences come a few at a time.

    >>> evaluation_batch(5000), evaluation_batch(5000, enough=150)
    (500, 200)
    >>> evaluation_batch(872, tokens=64, cpu=True)
    32
    """
    most = _EVALUATION_BATCH
    if cpu:
        most = min(most, max(_CPU_EVALUATED_TOKENS // tokens, 1))
    if enough is not None:
        most = min(most, max(_SHORT_BATCH, enough * 4 // 3))
    return _even(examples, most)


def _cpu_lanes(workload: Workload) -> int:
    if _convolves(workload):
        return 1
    fit = _CPU_WEIGHT_BYTES // max(_weight_bytes(workload), 1)
    return min(_CPU_LANES, 1 << max(fit.bit_length() - 1, 0))


def _parameters(workload: Workload) -> PyTree:
    return jax.eval_shape(workload.init, keys.shape())[0]


def _weight_bytes(workload: Workload) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(_parameters(workload)))


def _even(batch_size: int, most: int) -> int:
    """A microbatch of at most `most`, a divisor of the batch size if one is near.

    Of powers of two always the same power, so that they share a program.
    """
    if batch_size <= most:
        return batch_size
    power = 1 << (most.bit_length() - 1)
    if batch_size % power == 0:
        return power
    divisors = [m for m in range(most, most // 2, -1) if batch_size % m == 0]
    return divisors[0] if divisors else power


@functools.lru_cache(maxsize=8)  # asked at every batch size, and traced for it
def _convolves(workload: Workload) -> bool:
    batch = arrays.like_examples(workload.splits()["train"], 1)
    key = keys.shape()

    def metrics(key: PyTree, batch: PyTree) -> PyTree:
        params, model_state = workload.init(key)
        return workload.metrics(params, model_state, workload.prepare(batch, None))

    return "conv_general_dilated" in str(jax.make_jaxpr(metrics)(key, batch))
