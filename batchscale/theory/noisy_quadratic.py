"""The noisy quadratic model of Zhang et al. (2019, arXiv:1907.04164), solved exactly.

The risk is L(theta) = 1/2 sum_i h_i theta_i^2, and a batch of B examples gives the gradient
h_i theta_i plus noise of variance c_i / B. Coordinates do not interact, so the second moments of
every coordinate follow a linear recursion, for SGD, heavy-ball momentum, averaging of the iterates
and preconditioning alike. Many steps are taken at once by doubling, so the expected risk after any
number of them is exact, whatever the schedule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
from jaxtyping import Float
from numpy.typing import ArrayLike

from batchscale import numeric
from batchscale.stopping import evaluation_grid
from batchscale.theory import _swinging
from batchscale.theory._moments import Leap, begun

if TYPE_CHECKING:
    from batchscale.workloads import Workload

Schedule = Sequence[tuple[int, float]]
"""Learning rates, piecewise constant: (from which step, learning rate), the first from step 0."""

_SPACING = 0.05  # of the grid on which a crossing is bracketed, as in a study
_LARGEST_BATCH = 2**16
_FOLLOWED = 1000  # steps, with momentum, that are looked at one by one


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The tuned learning rate of a batch size.

    Attributes:
      batch_size: examples a step.
      steps: the fewest steps to the target; inf if no learning rate gets there in the budget.
      learning_rate: that needs them.
    """

    batch_size: int
    steps: float
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class NoisyQuadratic:
    """A noisy quadratic model.

    Attributes:
      curvature: h_i, above 0.
      noise: c_i, the variance of the gradient of one example, at least 0.
      start: theta_i^2 before the first step, in expectation.

    >>> model = NoisyQuadratic.power_law(100)
    >>> round(float(model.risk([0], learning_rate=0.1, batch_size=1)[0]), 3)
    2.594
    """

    curvature: Float[np.ndarray, " dimension"]
    noise: Float[np.ndarray, " dimension"]
    start: Float[np.ndarray, " dimension"]

    def __post_init__(self) -> None:
        fields = {}
        for field in dataclasses.fields(self):
            values = np.array(getattr(self, field.name), np.float64)
            fields[field.name] = values
            object.__setattr__(self, field.name, values)
            if (
                values.ndim != 1
                or not values.size
                or not (np.isfinite(values) & (values >= 0)).all()
            ):
                raise ValueError(
                    f"{field.name}: wanted a vector, not empty, of finite numbers of at least 0."
                )
        if len({len(values) for values in fields.values()}) != 1:
            raise ValueError(
                "curvature, noise, start: got lengths "
                f"{[len(values) for values in fields.values()]}, wanted one length."
            )
        if not (self.curvature > 0).all():
            raise ValueError("curvature: wanted numbers above 0.")

    @classmethod
    def power_law(cls, dimension: int, *, exponent: float = 1.0) -> NoisyQuadratic:
        """The spectrum h_i = i^-exponent, gradient noise c_i = h_i, and theta_0 ~ N(0, I).

        With exponent 1 and 10,000 dimensions the model of the paper's figures.
        """
        dimension = numeric.integer("dimension", dimension, 1)
        power = numeric.plain(exponent)
        if power is None or not math.isfinite(power):
            raise ValueError(f"exponent: got {exponent!r}, wanted a finite number.")
        spectrum = np.arange(1, dimension + 1, dtype=np.float64) ** -power
        return cls(spectrum, spectrum, np.ones(dimension))

    def risk(
        self,
        steps: ArrayLike,
        *,
        learning_rate: float | Schedule,
        batch_size: float,
        momentum: float = 0.0,
        averaging: float = 0.0,
        preconditioning: float = 0.0,
    ) -> Float[np.ndarray, " steps"]:
        """The expected risk after so many steps; exact, inf where it has overflowed.

        Args:
          steps: integers of at least 0, in any order.
          learning_rate: alpha, or a piecewise constant schedule.
          batch_size: B.
          momentum: beta of the heavy ball, v <- beta v + g, theta <- theta - alpha v.
          averaging: gamma; the risk is that of the average theta' <- gamma theta' + (1 - gamma)
            theta, which begins at theta_0.
          preconditioning: p; gradients are divided by h^p: 0 is SGD, 1 Newton's method.

        Raises:
          ValueError: an argument is not as above.
        """
        wanted = np.asarray(steps)
        if wanted.dtype.kind not in "iuf" or not ((wanted >= 0) & (wanted % 1 == 0)).all():
            raise ValueError("steps: wanted integers of at least 0.")
        wanted = wanted.astype(np.int64)
        pieces = _pieces(learning_rate)
        _check(batch_size, momentum, averaging, preconditioning)
        order = np.unique(wanted)
        found: dict[int, float] = {}
        # Second moments of (theta, v, theta'), or of what of them there is, for every coordinate.
        moments = begun(self.start, momentum, averaging)
        watched = -1 if averaging else 0
        at = 0
        ends = [first for first, _ in pieces[1:]] + [math.inf]
        with np.errstate(over="ignore", invalid="ignore"):
            for (_, alpha), end in zip(pieces, ends, strict=True):
                leap = Leap(
                    self.curvature,
                    self.noise,
                    alpha,
                    batch_size,
                    momentum,
                    averaging,
                    preconditioning,
                )
                for step in [int(s) for s in order if at <= s < end]:
                    moments = leap.take(moments, step - at)
                    at = step
                    found[step] = self._risk_of(moments[:, watched, watched])
                if end < math.inf and any(s >= end for s in order):
                    moments = leap.take(moments, int(end) - at)
                    at = int(end)
        return np.array([found[int(step)] for step in wanted.ravel()]).reshape(wanted.shape)

    def _risk_of(self, squares: np.ndarray) -> float:
        total = 0.5 * float(self.curvature @ squares)
        return total if math.isfinite(total) else math.inf

    def steps_to_target(
        self,
        target: float,
        *,
        learning_rate: float | Schedule,
        batch_size: float,
        max_steps: int = 10**7,
        **options: float,
    ) -> float:
        """The first step at which the expected risk is below a target; inf if none is.

        The crossing is looked for on a grid of evaluations 5% apart, and then in between: a dip
        below the target that is shorter than 5% of the steps may be passed over.

        >>> model = NoisyQuadratic.power_law(100)
        >>> model.steps_to_target(0.5, learning_rate=0.5, batch_size=64)
        27.0
        """
        _check_target(target)
        max_steps = numeric.integer("max_steps", max_steps, 1, 2**62)
        grid = evaluation_grid(max_steps, _SPACING)

        def below(steps: list[int]) -> np.ndarray:
            risk = self.risk(steps, learning_rate=learning_rate, batch_size=batch_size, **options)
            return risk < target

        # In parts that grow: most crossings are early.
        first = 0
        while first < len(grid):
            part = grid[first : first + 40]
            past = below(part)
            if past.any():
                place = first + int(np.argmax(past))
                low, high = (grid[place - 1], grid[place]) if place else (-1, 0)
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (low, middle) if below([middle])[0] else (middle, high)
                return float(high)
            first += 40
        return math.inf

    def optimum(
        self,
        target: float,
        *,
        batch_size: int,
        max_steps: int = 10**7,
        **options: float,
    ) -> Optimum:
        """The learning rate with the fewest steps to a target, to about 0.1% without momentum.

        Then steps are a smooth, single-dipped function of a constant learning rate but for being
        integers; the fewest are sought by a bounded search of log alpha below the largest that is
        stable. With momentum the risk swings, and steps have dips that may be narrower than a
        percent of the rate. Where the search finds no more than 1,000 steps, those of many rates
        are followed one by one (480 to 20,000 of them, by the number of coordinates and steps):
        what is narrower than they are apart may still be missed. Dips count that `steps_to_target`
        passes over.

        >>> model = NoisyQuadratic.power_law(100)
        >>> best = model.optimum(0.2, batch_size=16)
        >>> best.steps <= model.steps_to_target(0.2, learning_rate=0.2, batch_size=16)
        True
        """
        batch_size = numeric.integer("batch_size", batch_size, 1)
        max_steps = numeric.integer("max_steps", max_steps, 1, 2**62)
        _check_target(target)
        if self._risk_of(self.start) < target:
            raise ValueError(
                f"target: got {target!r}, and the risk is below it before the first step. Give a "
                "harder one."
            )
        beta = options.get("momentum", 0.0)
        effective = self.curvature ** (1 - options.get("preconditioning", 0.0))
        limit = math.log(2 * (1 + beta) / effective.max())

        def cost(log_alpha: float) -> float:
            steps = self.steps_to_target(
                target,
                learning_rate=math.exp(log_alpha),
                batch_size=batch_size,
                max_steps=max_steps,
                **options,
            )
            return math.log(steps) if 0 < steps < math.inf else math.log(max_steps) + 1

        coarse = np.linspace(limit - math.log(1e5), limit - 1e-3, 24)
        values = [cost(x) for x in coarse]
        place = int(np.argmin(values))
        if values[place] > math.log(max_steps):
            return Optimum(batch_size, math.inf, math.nan)
        low, high = coarse[max(place - 1, 0)], coarse[min(place + 1, len(coarse) - 1)]
        found = scipy.optimize.minimize_scalar(
            cost, bounds=(low, high), method="bounded", options={"xatol": 1e-3}
        )
        best = float(found.x) if found.fun <= values[place] else float(coarse[place])
        steps = round(math.exp(cost(best)))
        if beta and steps <= _FOLLOWED:
            fewer, rate = _swinging.fewest(self, target, limit, batch_size, steps - 1, options)
            if fewer < steps:
                return Optimum(batch_size, int(fewer), rate)
        return Optimum(batch_size, steps, math.exp(best))

    def simulate(
        self,
        steps: Sequence[int],
        *,
        learning_rate: float,
        batch_size: float,
        runs: int,
        momentum: float = 0.0,
        seed: int = 0,
    ) -> Float[np.ndarray, "runs steps"]:
        """The risk of single noisy runs, in plain NumPy: nothing of the engine is used.

        Args:
          steps: at which the risk is taken, in increasing order.
          learning_rate: alpha.
          batch_size: B.
          runs: how many.
          momentum: beta of the heavy ball.
          seed: of the runs.

        >>> model = NoisyQuadratic.power_law(10)
        >>> model.simulate([0, 5], learning_rate=0.1, batch_size=4, runs=3).shape
        (3, 2)
        """
        steps = numeric.increasing("steps", steps)
        _pieces(learning_rate)
        _check(batch_size, momentum, 0.0, 0.0)
        random = np.random.default_rng(numeric.integer("seed", seed, 0))
        shape = (numeric.integer("runs", runs, 1), len(self.start))
        theta = random.normal(size=shape) * np.sqrt(self.start)
        velocity = np.zeros(shape)
        scale = np.sqrt(self.noise / batch_size)
        rows, at = [], 0
        for step in steps:
            for _ in range(step - at):
                gradient = self.curvature * theta + scale * random.normal(size=shape)
                velocity = momentum * velocity + gradient
                theta = theta - learning_rate * velocity
            at = step
            rows.append(0.5 * (theta**2) @ self.curvature)
        return np.stack(rows, 1)

    def workload(self, name: str = "noisy_quadratic") -> Workload:
        """The model as a workload: the metric `risk` is that of the parameters, without noise.

        Every step draws fresh noise, of variance c / B whatever the microbatches, so there is no
        finite training set: that of the workload holds nothing but numbers of examples, and batch
        sizes go up to 65,536.

        >>> workload = NoisyQuadratic.power_law(10).workload()
        >>> workload.train_examples
        65536
        """
        import jax
        import jax.numpy as jnp

        from batchscale.workloads import Workload

        h, c, start = (np.asarray(x) for x in (self.curvature, self.noise, self.start))

        def init(key):
            scale = jnp.sqrt(jnp.asarray(start, jnp.result_type(float)))
            return {"theta": scale * jax.random.normal(key, scale.shape)}, {}

        def risk(params):
            return 0.5 * jnp.sum(jnp.asarray(h, params["theta"].dtype) * params["theta"] ** 2)

        def loss(params, model_state, batch, key, hyperparameters):
            del hyperparameters
            theta, count = params["theta"], len(batch["input"])
            # The gradients of `count` examples add up to noise of variance count c.
            noise = jnp.sqrt(jnp.asarray(count * c, theta.dtype)) * jax.random.normal(
                key, theta.shape, theta.dtype
            )
            total = count * risk(params) + theta @ noise
            return (total, jnp.asarray(count)), model_state

        def metrics(params, model_state, batch):
            del model_state
            count = len(batch["input"])
            return {"risk": (count * risk(params), jnp.asarray(count))}

        return Workload(
            name=name,
            init=init,
            loss=loss,
            metrics=metrics,
            data={
                "train": {"input": np.zeros((_LARGEST_BATCH, 1), np.uint8)},
                "validation": {"input": np.zeros((1, 1), np.uint8)},
            },
            hyperparameters=(),
            train_examples=_LARGEST_BATCH,
        )


def _check_target(target: float) -> None:
    number = numeric.plain(target)
    if number is None or math.isnan(number):
        raise ValueError(f"target: got {target!r}, wanted a number.")


def _pieces(learning_rate: float | Schedule) -> list[tuple[int, float]]:
    alone = numeric.plain(learning_rate)
    given: Any = [(0, alone)] if alone is not None else learning_rate
    try:
        pieces = [(int(step), float(alpha)) for step, alpha in given]
    except (TypeError, ValueError):
        raise TypeError(
            f"learning_rate: got {learning_rate!r}, wanted a number, or pairs (first step, number)."
        ) from None
    starts = [step for step, _ in pieces]
    if not pieces or starts[0] != 0 or starts != sorted(set(starts)):
        raise ValueError(
            f"learning_rate: got pieces from steps {starts}, wanted the first from step 0 and the "
            "others in increasing order."
        )
    if any(not 0 <= alpha < math.inf for _, alpha in pieces):
        raise ValueError("learning_rate: wanted numbers of at least 0, and finite.")
    return pieces


def _check(batch_size: float, momentum: float, averaging: float, preconditioning: float) -> None:
    wanted: dict[str, tuple[float, str, Callable[[float], bool]]] = {
        "batch_size": (batch_size, "a number above 0", lambda x: x > 0),
        "momentum": (momentum, "a number in [0, 1)", lambda x: 0 <= x < 1),
        "averaging": (averaging, "a number in [0, 1)", lambda x: 0 <= x < 1),
        "preconditioning": (preconditioning, "a number in [0, 1]", lambda x: 0 <= x <= 1),
    }
    for name, (value, words, is_right) in wanted.items():
        number = numeric.plain(value)
        if number is None or not is_right(number):
            raise ValueError(f"{name}: got {value!r}, wanted {words}.")
