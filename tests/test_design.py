"""The joint model of a measurement, against finite differences and worlds of known truth."""

import math

import numpy as np
import pytest

from batchscale.design.asking import ask, scout
from batchscale.design.axes import Axes
from batchscale.design.basins import basins
from batchscale.design.checking import design_trials, levels, medians
from batchscale.design.design import Design
from batchscale.design.doubting import doubtful
from batchscale.design.fitting import fit
from batchscale.design.model import Model
from batchscale.design.question import Question, Spent
from batchscale.design.response import of_rate, of_second
from batchscale.design.trials import Outcome, Purpose, Trials, middle
from batchscale.tuner import (
    Choice,
    Integer,
    LogUniform,
    ReverseLogUniform,
    SearchSpace,
    Uniform,
)
from validation.measure import measured, trained
from validation.noisy import leap
from validation.worlds import WORLDS, World

SIZES = tuple(4.0**k for k in range(6))


def question(world, **changes):
    sizes = np.array(world.batch_sizes)
    n = len(sizes)
    given = {
        "low": math.log(world.low),
        "high": math.log(world.high),
        "second": world.second,
        "seconds": sizes + sizes.max() / 4,
        "lanes": np.ones(n, np.int64),
        "max_steps": np.full(n, float(world.max_steps)),
    } | changes
    return Question(sizes, **given)


def drawn(world, seed=0, *, per_size=8, reach=1.5, away=0.0):
    """Trials about the optimum of every batch size, and fresh seeds at it.

    Of the second hyperparameter, where it is not at its optimum, so far to either side in turn.
    """
    random, rows = np.random.default_rng(seed), []
    grid = world.grid()
    for size, batch_size in enumerate(world.batch_sizes):
        best = world.best_rate(batch_size)
        for purpose, rates in (
            (Purpose.ASK, best + np.linspace(-reach, reach, per_size)),
            (Purpose.CHECK, np.full(7, best)),
        ):
            seconds = np.zeros(len(rates))
            if purpose == Purpose.ASK:
                seconds = away * np.resize([0.0, -1.0, 1.0], len(rates))
            exact, gone = world.run(batch_size, rates, seconds, random)
            for rate, second, steps, diverged in zip(rates, seconds, exact, gone, strict=True):
                place = min(int(np.searchsorted(grid, steps)), len(grid) - 1)
                crossed = not diverged and np.isfinite(steps)
                outcome = Outcome.DIVERGED if diverged else Outcome.CUT
                y = middle(grid[place], grid[place - 1]) if crossed else math.log(grid[-1])
                outcome = Outcome.CROSSED if crossed else outcome
                rows.append((size, rate, second, y, outcome, purpose, int(purpose)))
    return Trials.of(sorted(rows, key=lambda row: row[-1]))


@pytest.mark.parametrize("second", [False, True])
def test_the_gradient_of_the_posterior_is_that_of_finite_differences(second):
    random = np.random.default_rng(0)
    model = Model(2.0 ** np.arange(6), -5.0, 2.0, second=second)
    rows = [
        (
            int(random.integers(6)), random.uniform(-5, 2), random.uniform(-2, 2),
            random.uniform(3, 7), int(random.integers(3)), 0, 0,
        )
        for _ in range(40)
    ]  # fmt: skip
    trials, distrust = Trials.of(rows), random.uniform(0, 0.4, 40)
    at = model.starts(trials)[0] + 0.1 * random.standard_normal(model.parameters)
    _, gradient, hessian = model.minus_log(at, trials, distrust)
    steps = 1e-6 * np.eye(model.parameters)
    numeric = [
        (
            model.minus_log(at + s, trials, distrust)[0]
            - model.minus_log(at - s, trials, distrust)[0]
        )
        / 2e-6
        for s in steps
    ]
    np.testing.assert_allclose(gradient, numeric, atol=1e-4 * np.abs(gradient).max())
    assert np.linalg.eigvalsh(hessian).min() > 0


def test_far_below_the_optimum_steps_are_in_inverse_proportion_to_the_rate():
    far = np.array([-8.0, -9.0])
    height = of_rate(far, np.array([0.25]), np.array([0.6]))
    assert height.value[1] - height.value[0] == pytest.approx(1)
    assert (height.by_distance == -1).all()


def test_the_second_optimum_moves_with_the_rate_and_costs_nothing_there():
    found = of_second(np.array([0.8, 0.0]), np.array([1.0, 0.0]), 0.3, 0.8)
    np.testing.assert_allclose(found.value, 0, atol=1e-12)
    assert of_second(np.array([1.0]), np.array([0.0]), 0.3, 0.8).value[0] == pytest.approx(0.3)


def test_the_model_finds_levels_and_rates_of_a_known_world_as_well_as_it_says():
    world = World(batch_sizes=SIZES)
    truth = np.array([world.log_steps(size) for size in SIZES])
    rates = np.array([world.best_rate(size) for size in SIZES])
    off, checked, moved = [], [], []
    for seed in range(8):
        trials = drawn(world, seed)
        found = fit(question(world).model(), design_trials(trials))
        of = levels(found, trials)
        off += ((of.predicted - truth) / of.predicted_sd).tolist()
        checked += ((of.mean - truth) / np.sqrt(np.diag(of.covariance))).tolist()
        moved += (found.rate - rates).tolist()
    assert 0.6 < np.std(off) < 1.5
    assert 0.6 < np.std(checked) < 1.5
    assert np.sqrt(np.mean(np.square(moved))) < 0.4


def test_a_second_hyperparameter_that_matters_more_in_larger_batches_is_seen_to():
    """Momentum does; one curvature for all made steps of small batch sizes too few."""
    world = World(batch_sizes=SIZES, second=True, matters=0.3, scatter=(0.1, 0.1))
    found = fit(question(world).model(), design_trials(drawn(world, per_size=30, away=1.4)))
    curvature = 0.12 * np.exp(0.3 * (np.log(SIZES) - np.log(SIZES).mean()))
    np.testing.assert_allclose(found.second_curvature, curvature, rtol=0.35)
    truth = [world.log_steps(size) for size in SIZES]
    assert np.abs(found.level - truth).max() < 0.08


def test_parameters_of_another_model_are_not_begun_from():
    world = World(batch_sizes=SIZES)
    trials = drawn(world)
    found = [Design(question(world), trials, warm).fitted.parameters for warm in (None, np.ones(3))]
    np.testing.assert_array_equal(*found)


def test_a_jump_of_the_best_rate_is_followed():
    world = World(batch_sizes=SIZES, jump=8.0, scatter=(0.1, 0.1))
    found = fit(question(world).model(), design_trials(drawn(world)))
    np.testing.assert_allclose(found.rate, [world.best_rate(size) for size in SIZES], atol=0.7)


def test_trials_that_were_cut_and_that_diverged_say_where_not_to_look():
    world = World(batch_sizes=SIZES, cliff=0.8)
    trials = design_trials(drawn(world))
    assert (trials.outcome == Outcome.DIVERGED).any()
    found = fit(question(world).model(), trials)
    cliff = found.parameters[found.model.at.cliff]
    np.testing.assert_allclose(cliff - found.rate, 0.8, atol=0.7)
    asked = ask(found, question(world), 5, math.inf).asked
    assert asked
    assert all(one.rate < cliff[one.size] for one in asked)


def test_the_scout_covers_the_range_at_the_smallest_and_a_middle_batch_size():
    found = scout(question(World(batch_sizes=SIZES)))
    assert {one.size for one in found.asked} == {0, 3}
    for size in (0, 3):
        rates = np.sort([one.rate for one in found.asked if one.size == size])
        parts = (rates - math.log(1e-4)) / math.log(1e6) * len(rates)
        assert np.floor(parts).tolist() == list(range(len(rates)))
    assert found.lockstep is not None


def test_an_optimum_that_is_not_bracketed_gets_a_trial_on_the_side_that_lacks():
    world = World(batch_sizes=SIZES)
    trials = design_trials(drawn(world))
    above = trials.where((trials.size != 2) | (trials.rate > world.best_rate(SIZES[2]) - 0.2))
    found = fit(question(world).model(), above)
    asked = [one for one in ask(found, question(world), 5, math.inf).asked if one.size == 2]
    assert any(one.rate < found.rate[2] for one in asked)


def test_packs_that_are_begun_are_filled():
    world = World(batch_sizes=SIZES)
    found = fit(question(world).model(), design_trials(drawn(world)))
    asked = ask(found, question(world, lanes=np.full(6, 4)), 5, math.inf).asked
    counts = np.bincount([one.size for one in asked], minlength=6)
    assert asked
    assert (counts % 4 == 0).all()


def test_dear_batch_sizes_are_asked_less():
    world = World(batch_sizes=SIZES)
    found = fit(question(world).model(), design_trials(drawn(world)))

    def share(seconds):
        asked = ask(found, question(world, seconds=seconds, precision=0.05), 5, 1e12).asked
        return np.mean([one.size == 5 for one in asked])

    dear = np.ones(6)
    dear[5] = 1e4
    assert share(dear) < share(np.ones(6))


def test_fresh_seeds_that_agree_narrow_the_levels_and_others_reject_the_model():
    world = World(batch_sizes=SIZES)
    trials = drawn(world, 3)
    found = fit(question(world).model(), design_trials(trials))
    agreed = levels(found, trials)
    assert not agreed.rejected.any()
    assert (np.sqrt(np.diag(agreed.covariance)) < agreed.predicted_sd).all()
    moved = Trials(**{n: getattr(trials, n).copy() for n in Trials.__dataclass_fields__})
    odd = (moved.size == 2) & (moved.purpose == Purpose.CHECK)
    moved.log_steps[odd] += 1.0
    rejected = levels(found, moved)
    assert np.flatnonzero(rejected.rejected).tolist() == [2]
    seen = medians(found, moved)[0]
    assert rejected.mean[2] == pytest.approx(seen[2], abs=0.25)
    assert doubtful(found, rejected)[2]


def test_a_difference_that_all_batch_sizes_share_moves_all_levels():
    """Skewed first passages: medians lie above what trials about them say."""
    world = World(batch_sizes=SIZES)
    trials = drawn(world, 1)
    found = fit(question(world).model(), design_trials(trials))
    before = levels(found, trials)
    trials.log_steps[trials.purpose == Purpose.CHECK] += 0.15
    after = levels(found, trials)
    assert not after.rejected.any()
    assert (after.mean - before.mean).min() > 0.05


def test_where_half_of_the_seeds_miss_the_model_is_rejected():
    world = World(batch_sizes=SIZES)
    trials = drawn(world, 2)
    found = fit(question(world).model(), design_trials(trials))
    gone = np.flatnonzero((trials.size == 4) & (trials.purpose == Purpose.CHECK))[:4]
    trials.outcome[gone] = Outcome.CUT
    after = levels(found, trials)
    assert after.rejected[4]
    assert after.missed.tolist() == [4 if size == 4 else 0 for size in range(len(SIZES))]
    assert (after.seeds >= after.missed).all()


def test_a_setting_that_has_moved_since_it_was_checked_is_checked_again():
    world = World(batch_sizes=SIZES)
    trials = drawn(world, 2)
    checks = trials.purpose == Purpose.CHECK
    trials.round[checks] = trials.round.max() + 1
    here = checks & (trials.size == 4)
    asked = question(world, precision=0.9)
    assert Design(asked, trials).next(Spent(0.0, 0.0)).why == "precision"
    trials.rate[here] += 2.0
    found = Design(asked, trials)
    assert found.answer.levels.seeds[4] == 0
    more = found.next(Spent(0.0, 0.0))
    assert {one.purpose for one in more.asked} == {Purpose.CHECK}
    assert {one.size for one in more.asked} == set(range(len(SIZES)))
    # Not for ever, and not where there is no price for it.
    many = Trials(
        **{n: np.r_[getattr(trials, n), *[getattr(trials, n)[here]] * 4] for n in vars(trials)}
    )
    assert not Design(asked, many).next(Spent(0.0, 0.0)).asked
    poor = question(world, precision=0.9, price=1.0)
    assert not Design(poor, trials).next(Spent(0.9, 0.0)).asked


def two_basins(world, of_lower, seed=0):
    """Trials about both optima: all of the upper one, and of the lower one at some batch sizes."""
    upper = design_trials(drawn(world, seed))
    shift = math.log(50)
    moved = Trials(**{n: getattr(upper, n).copy() for n in Trials.__dataclass_fields__})
    moved.rate[:] -= shift
    random = np.random.default_rng(seed)
    for place, (size, rate) in enumerate(zip(moved.size, moved.rate, strict=True)):
        exact, _ = world.run(SIZES[size], np.array([rate]), np.zeros(1), random)
        moved.log_steps[place] = math.log(exact[0])
    kept = moved.where(np.isin(moved.size, of_lower))
    names = Trials.__dataclass_fields__
    return Trials(**{n: np.r_[getattr(upper, n), getattr(kept, n)] for n in names})


def test_trials_of_one_basin_are_no_two():
    world = World(batch_sizes=SIZES)
    assert basins(fit(question(world).model(), design_trials(drawn(world)))) is None


def test_each_batch_size_gets_the_faster_of_two_basins():
    world = World(batch_sizes=SIZES, basin=0.5, crosses=True, scatter=(0.1, 0.1))
    found = basins(fit(question(world).model(), two_basins(world, range(6))))
    assert found is not None
    # From batch size 256 on the lower one is the faster.
    assert found.chosen.tolist() == [True] * 4 + [False] * 2
    assert not found.undecided.any()
    best = [world.best_rate(size) - (math.log(50) if size >= 256 else 0) for size in SIZES]
    np.testing.assert_allclose(found.fitted().rate, best, atol=0.7)
    levels = [world.log_steps(size) for size in SIZES]
    np.testing.assert_allclose(found.fitted().level, levels, atol=0.2)


def test_what_is_known_too_little_of_the_other_basin_is_asked_for():
    world = World(batch_sizes=SIZES, basin=0.3, crosses=True, scatter=(0.1, 0.1))
    asked = question(world)
    found = basins(fit(asked.model(), two_basins(world, range(4))))
    assert found is not None
    round_ = ask(found.fitted(), asked, 2, math.inf, found)
    lower = {one.size for one in round_.asked if one.rate < world.best_rate(SIZES[one.size]) - 2}
    assert 4 in lower
    other = np.array([one.rate for one in round_.asked if one.size == 4])
    assert np.abs(other - world.best_rate(SIZES[4]) + math.log(50)).min() < 1.5


def test_where_either_basin_may_be_the_faster_the_answer_is_doubted():
    world = World(batch_sizes=SIZES, basin=0.0, scatter=(0.4, 0.4))
    trials = two_basins(world, range(6))
    found = basins(fit(question(world).model(), trials))
    assert found is not None
    assert found.undecided.any()
    fitted = found.fitted()
    assert (doubtful(fitted, levels(fitted, trials), found) >= found.undecided).all()


def test_noisy_steps_taken_at_once_are_those_taken_one_by_one():
    shrink, kick = np.array([0.9, -0.7, 1.0, 1.1, 0.0]), np.array([0.1, 2.0, 1.0, 0.5, 1.0])
    mean, variance = np.ones(5), np.zeros(5)
    for _ in range(9):
        mean, variance = mean * shrink, variance * shrink**2 + kick**2
    power, deviation = leap(shrink, kick, 9)
    np.testing.assert_allclose(power, mean, rtol=1e-12)
    np.testing.assert_allclose(deviation**2, variance, rtol=1e-12)


def test_a_basin_that_is_a_guess_is_not_the_faster_one():
    # A few slow trials far below the optimum were taken for a basin of its own, whose best rate,
    # where nothing was tried, would take a thirtieth of the steps.
    found, *_ = measured(WORLDS["three slopes"], 163, examples=9.9e6, precision=0.15)
    truth = [WORLDS["three slopes"].log_steps(size) for size in WORLDS["three slopes"].batch_sizes]
    np.testing.assert_allclose(found.log_steps, truth, atol=0.4)
    assert (found.log_steps_sd < 0.3).all()


def test_the_same_trials_make_the_same_round():
    world = World(batch_sizes=SIZES)
    first, second = (
        Design(question(world), design_trials(drawn(world))).next(Spent(0.0, 0.0)) for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("world", [World(batch_sizes=SIZES), World(batch_sizes=SIZES, second=True)])
def test_a_measurement_to_a_precision_ends_there_and_holds_the_truth(world):
    answer, cost, _, why = measured(world, 0, examples=math.inf, precision=0.25)
    assert why in ("precision", "precision of the model")
    assert answer.width < 0.3
    truth = np.array([world.log_steps(size) for size in SIZES])
    assert (np.abs(answer.log_steps - truth) < 3 * answer.log_steps_sd).all()
    assert answer.curve.b_crit(0.01) < world.b_crit < answer.curve.b_crit(0.99)
    assert cost.runs < 6 * 60


def test_a_price_is_not_overspent_by_more_than_the_check():
    world = World(batch_sizes=SIZES)
    steps = np.exp([world.log_steps(size) for size in SIZES])
    examples = 16 * float(steps @ np.array(SIZES))
    _, cost, _, why = measured(world, 1, examples=examples, precision=0.01)
    assert why == "price"
    assert cost.examples < 1.5 * examples


def test_what_the_check_costs_in_full_packs_is_kept_for_it():
    """Five seeds of a pack of eight cost as much as eight."""
    world, lanes = World(batch_sizes=SIZES), np.full(6, 8)
    asked = question(world, precision=0.01)
    steps = np.exp([world.log_steps(size) for size in SIZES])
    of_a_seed = float(steps @ asked.seconds)
    price = 60 * of_a_seed
    trials = design_trials(drawn(world))

    def purposes(left, **changes):
        limited = question(world, precision=0.01, price=price, **changes)
        more = Design(limited, trials).next(Spent(price - left * of_a_seed, 0.0)).asked
        return {one.purpose for one in more}

    assert purposes(7.0) == {Purpose.ASK}
    assert purposes(7.0, lanes=lanes) == {Purpose.CHECK}
    assert purposes(11.0, lanes=lanes) == {Purpose.ASK}


def test_where_nothing_reaches_the_goal_the_measurement_ends_and_says_so():
    world = World(batch_sizes=SIZES, max_steps=5)
    asked = question(world)
    rows, _ = trained(world, scout(asked), 0, np.random.default_rng(0))
    found = Design(asked, Trials.of(rows)).next(Spent(1.0, 1.0))
    assert found.asked == []
    assert found.why == "no trial of the scout reached the goal"


@pytest.mark.parametrize(
    "space",
    [
        SearchSpace(learning_rate=LogUniform(0.01, 1.0)),
        SearchSpace(learning_rate=LogUniform(0.01, 1.0), momentum=0.9),
        SearchSpace(learning_rate=LogUniform(0.01, 1.0), momentum=ReverseLogUniform(0.5, 0.99)),
        SearchSpace(learning_rate=LogUniform(0.01, 1.0), weight_decay=LogUniform(1e-5, 1e-2)),
    ],
)
def test_hyperparameters_and_axes_are_each_others_inverse(space):
    axes = Axes.of(space)
    second = 0.7 if axes.second else 0.0
    values = axes.values(-1.3, second)
    assert set(values) == set(space.names)
    assert axes.setting(values) == pytest.approx((-1.3, second))
    low, high = axes.range()
    assert high - low == pytest.approx(math.log(100))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (SearchSpace(learning_rate=0.1), "searches nothing"),
        (SearchSpace(momentum=Uniform(0.0, 0.9), learning_rate=0.1), "searches momentum"),
        (SearchSpace(learning_rate=Choice([0.1, 0.2])), "of which learning_rate in steps"),
        (SearchSpace(learning_rate=LogUniform(0.1, 1), warmup=Integer(1, 9)), "warmup in steps"),
        (
            SearchSpace(
                learning_rate=LogUniform(0.1, 1), b1=Uniform(0.1, 0.9), b2=Uniform(0.1, 0.9)
            ),
            "searches learning_rate, b1, b2; wanted",
        ),
        (SearchSpace(learning_rate=Uniform(0.0, 1.0)), "from 0, wanted above 0"),
    ],
)
def test_spaces_of_other_dimensions_are_refused(space, message):
    with pytest.raises(ValueError, match=message):
        Axes.of(space)
