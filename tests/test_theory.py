"""The noisy quadratic model against closed forms, a plain simulation, and the engine."""

import numpy as np
import pytest
import scipy.stats

import batchscale as bs
from batchscale.stopping import evaluation_grid
from batchscale.theory import NoisyQuadratic

MODEL = NoisyQuadratic.power_law(60)
STEPS = [0, 1, 2, 3, 10, 77, 500]


def closed_form(steps, alpha, batch_size, preconditioning=0.0):
    """Zhang et al. (2019): the risk of SGD, with a preconditioner H^p."""
    h, c = MODEL.curvature, MODEL.noise
    t = np.asarray(steps)[:, None]
    rate = h ** (1 - preconditioning)
    shrink = (1 - alpha * rate) ** (2 * t)
    steady = alpha * c * h**-preconditioning / (2 * batch_size * (2 - alpha * rate))
    return (shrink * 0.5 * h * MODEL.start + (1 - shrink) * steady).sum(1)


@pytest.mark.parametrize("alpha", [0.003, 0.5, 1.9])
@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("preconditioning", [0.0, 0.5, 1.0])
def test_the_risk_of_sgd_is_the_closed_form(alpha, batch_size, preconditioning):
    found = MODEL.risk(
        STEPS, learning_rate=alpha, batch_size=batch_size, preconditioning=preconditioning
    )
    wanted = closed_form(STEPS, alpha, batch_size, preconditioning)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_the_risk_of_momentum_tends_to_its_steady_state():
    alpha, beta, batch_size = 0.05, 0.9, 8
    h, c = MODEL.curvature, MODEL.noise
    steady = (1 + beta) * alpha * c / (2 * batch_size * (2 * beta + 2 - alpha * h) * (1 - beta))
    found = MODEL.risk([10**6], learning_rate=alpha, batch_size=batch_size, momentum=beta)
    np.testing.assert_allclose(found, [steady.sum()], rtol=1e-8)


def test_the_risk_of_averages_tends_to_its_steady_state():
    alpha, gamma, batch_size = 0.3, 0.95, 8
    h, c = MODEL.curvature, MODEL.noise
    rate = 1 - alpha * h
    steady = alpha * c / (2 * batch_size * (2 - alpha * h)) * (1 - gamma) / (1 + gamma)
    steady *= (1 + rate * gamma) / (1 - rate * gamma)
    found = MODEL.risk([10**6], learning_rate=alpha, batch_size=batch_size, averaging=gamma)
    np.testing.assert_allclose(found, [steady.sum()], rtol=1e-8)


def test_without_noise_the_risk_is_that_of_the_deterministic_iteration():
    quiet = NoisyQuadratic([1.0, 0.1], [0.0, 0.0], [1.0, 4.0])
    theta, velocity, average = np.array([1.0, 2.0]), np.zeros(2), np.array([1.0, 2.0])
    risks = []
    for _ in range(30):
        velocity = 0.8 * velocity + quiet.curvature * theta
        theta = theta - 0.3 * velocity
        average = 0.9 * average + 0.1 * theta
        risks.append(0.5 * quiet.curvature @ average**2)
    found = quiet.risk(
        np.arange(1, 31), learning_rate=0.3, batch_size=1, momentum=0.8, averaging=0.9
    )
    np.testing.assert_allclose(found, risks, rtol=1e-10)


def test_a_piecewise_schedule_goes_on_where_the_piece_before_ended():
    steps = [0, 5, 9, 10, 11, 900]
    pieces = [(0, 0.5), (10, 0.05)]
    found = MODEL.risk(steps, learning_rate=pieces, batch_size=2)
    first = MODEL.risk(steps, learning_rate=0.5, batch_size=2)
    np.testing.assert_allclose(found[:4], first[:4])
    assert found[-1] < 0.5 * first[-1]
    same = MODEL.risk(steps, learning_rate=[(0, 0.5), (10, 0.5)], batch_size=2)
    np.testing.assert_allclose(same, first, rtol=1e-12)


def test_momentum_is_carried_from_one_piece_of_a_schedule_into_the_next():
    random = np.random.default_rng(0)
    model, options = NoisyQuadratic.power_law(3), {"batch_size": 2, "momentum": 0.8}
    theta, velocity = random.normal(size=(40_000, 3)), np.zeros((40_000, 3))
    seen = {}
    for step in range(1, 16):
        noise = np.sqrt(model.noise / 2) * random.normal(size=theta.shape)
        velocity = 0.8 * velocity + model.curvature * theta + noise
        theta = theta - (0.4 if step <= 6 else 0.1) * velocity
        seen[step] = 0.5 * theta**2 @ model.curvature
    steps = [6, 7, 8, 11, 15]
    expected = model.risk(steps, learning_rate=[(0, 0.4), (6, 0.1)], **options)
    for step, risk in zip(steps, expected, strict=True):
        assert abs(seen[step].mean() - risk) < 4 * scipy.stats.sem(seen[step])
    # Without the velocity that was reached the steps after the change would be others.
    assert abs(expected[1] - model.risk([7], learning_rate=0.1, **options)[0]) > 0.05


def test_the_steps_to_a_target_are_the_first_below_it():
    options = {"learning_rate": 0.4, "batch_size": 16}
    steps = MODEL.steps_to_target(0.3, **options)
    before, at = MODEL.risk([steps - 1, steps], **options)
    assert at < 0.3 <= before
    assert MODEL.steps_to_target(10.0, **options) == 0
    assert MODEL.steps_to_target(1e-9, max_steps=10**5, **options) == np.inf


def test_the_optimum_beats_every_learning_rate_of_a_fine_grid():
    best = MODEL.optimum(0.2, batch_size=8)
    grid = np.geomspace(1e-3, 1.9, 200)
    steps = [MODEL.steps_to_target(0.2, learning_rate=a, batch_size=8) for a in grid]
    assert best.steps <= min(steps) * 1.001
    assert grid[0] < best.learning_rate < grid[-1]
    assert MODEL.optimum(1e-9, batch_size=8, max_steps=1000).steps == np.inf
    with pytest.raises(ValueError, match="below it before the first step"):
        MODEL.optimum(100.0, batch_size=8)


def swinging(model, rate, momentum, batch_size, target):
    """The first crossing, by the recursion of second moments of heavy-ball momentum."""
    h, noise = model.curvature, model.noise / batch_size
    both, mixed, speed = model.start.copy(), 0 * h, 0 * h
    for step in range(600):
        if 0.5 * (h * both).sum() < target:
            return step
        squared = momentum**2 * speed + 2 * momentum * h * mixed + h * h * both + noise
        mixed = momentum * mixed + h * both
        both, mixed = both - 2 * rate * mixed + rate**2 * squared, mixed - rate * squared
        speed = squared
    return np.inf


@pytest.mark.parametrize(
    ("coordinates", "momentum", "batch_size", "target"),
    [(10, 0.99, 1024, 0.1), (10, 0.99, 1024, 0.03), (100, 0.9, 1024, 0.1)],
)
def test_the_optimum_with_momentum_is_the_deepest_of_several_dips(
    coordinates, momentum, batch_size, target
):
    model = NoisyQuadratic.power_law(coordinates)
    best = model.optimum(target, batch_size=batch_size, momentum=momentum, max_steps=10_000)
    rates = np.geomspace(1e-3, 2 * (1 + momentum) * 0.999, 300)
    fewest = min(swinging(model, rate, momentum, batch_size, target) for rate in rates)
    assert best.steps <= 1.01 * fewest
    there = swinging(model, best.learning_rate, momentum, batch_size, target)
    assert best.steps == there


@pytest.mark.long
def test_batch_sizes_follow_the_papers_findings():
    """Perfect scaling, then a plateau; the best rate grows with B; momentum carries further."""
    sizes = [2**k for k in (0, 2, 6, 10, 14, 16)]
    sgd = [MODEL.optimum(0.02, batch_size=size) for size in sizes]
    steps = np.array([best.steps for best in sgd])
    assert (np.diff(steps) <= 0).all()
    np.testing.assert_allclose(steps[1] / steps[0], 0.25, rtol=0.05)
    assert steps[-1] / steps[-2] > 0.95
    rates = [best.learning_rate for best in sgd]
    np.testing.assert_allclose(rates[1] / rates[0], 4, rtol=0.1)
    heavy = [MODEL.optimum(0.02, batch_size=size, momentum=0.7).steps for size in sizes]
    assert heavy[0] == pytest.approx(steps[0], rel=0.1)
    assert heavy[-1] < 0.5 * steps[-1]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_mean_of_simulated_runs_is_the_expected_risk(momentum):
    options = {"learning_rate": 0.1, "batch_size": 4, "momentum": momentum}
    steps = [0, 3, 20, 100]
    runs = MODEL.simulate(steps, runs=2000, **options)
    error = (runs.mean(0) - MODEL.risk(steps, **options)) / scipy.stats.sem(runs)
    assert (np.abs(error) < 4).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0, wanted a number above 0"),
        ({"momentum": 1.0}, r"momentum: got 1.0, wanted a number in \[0, 1\)"),
        ({"learning_rate": -1.0}, "learning_rate: wanted numbers of at least 0"),
        ({"learning_rate": [(5, 0.1)]}, "learning_rate: got pieces from steps"),
        ({"steps": [-1]}, "steps: wanted integers of at least 0"),
    ],
)
def test_arguments_are_checked(options, message):
    arguments = {"steps": [1], "learning_rate": 0.1, "batch_size": 1} | options
    with pytest.raises(ValueError, match=message):
        MODEL.risk(arguments.pop("steps"), **arguments)


def test_models_are_checked():
    with pytest.raises(ValueError, match="wanted one length"):
        NoisyQuadratic([1.0], [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="curvature: wanted numbers above 0"):
        NoisyQuadratic([0.0], [1.0], [1.0])
    with pytest.raises(ValueError, match="noise: wanted a vector"):
        NoisyQuadratic([1.0], [-1.0], [1.0])


@pytest.mark.parametrize(
    ("batch_size", "microbatch", "optimizer"),
    [
        pytest.param(1, 1, "sgd", marks=pytest.mark.long),
        pytest.param(64, 16, "sgd", marks=pytest.mark.long),
        (2**12, 2**10, "momentum"),
    ],
)
def test_the_engine_measures_the_expected_risk(batch_size, microbatch, optimizer, tmp_path):
    options = {"learning_rate": 0.2} | ({"momentum": 0.8} if optimizer == "momentum" else {})
    study = bs.Study(
        workload=MODEL.workload(),
        optimizer=optimizer,
        space=bs.SearchSpace(**options),
        batch_sizes=[batch_size],
        goal=bs.Goal("validation/risk", 1e-9),
        trials=256,
        max_steps=60,
        stop="budget",
        microbatch=microbatch,
    )
    with pytest.warns(UserWarning, match="no trial reached"):
        result = study.run(tmp_path, progress=False)
    risks = result.measurements["validation/risk"].droplevel(["batch_size", "replicate"])
    table = risks.unstack("step")
    expected = MODEL.risk(table.columns, batch_size=batch_size, **options)
    error = (table.mean() - expected) / table.sem()
    # Neighbouring steps tell nearly the same; four standard errors are one in 16,000.
    assert (np.abs(error) < 4).all()
    simulated = MODEL.simulate(table.columns.tolist(), batch_size=batch_size, runs=1000, **options)
    for place in (0, -1):
        found = scipy.stats.ks_2samp(table.iloc[:, place], simulated[:, place])
        assert found.pvalue > 1e-3


@pytest.mark.parametrize("batch_size", [4, 256])
def test_first_crossings_of_the_engine_have_the_distribution_of_numpys(batch_size, tmp_path):
    best = MODEL.optimum(0.1, batch_size=batch_size)
    study = bs.Study(
        workload=MODEL.workload(),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=best.learning_rate),
        batch_sizes=[batch_size],
        goal=bs.Goal("validation/risk", 0.1),
        trials=400,
        max_steps=2 * int(best.steps),
        stop="all",
    )
    result = study.run(tmp_path, progress=False)
    ours = result.trials["first_crossing"].to_numpy()
    grid = evaluation_grid(2 * int(best.steps), 0.05)
    risks = MODEL.simulate(
        grid, learning_rate=best.learning_rate, batch_size=batch_size, runs=400, seed=1
    )
    past = risks < 0.1
    theirs = np.array([*grid, np.inf])[np.where(past.any(1), past.argmax(1), len(grid))]
    assert len(np.unique(ours)) > 5
    assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3
    assert scipy.stats.ks_2samp(ours, 1.15 * theirs).pvalue < 1e-3  # a shift would be seen
    # Half of the runs are past the goal before the expected risk is.
    assert np.median(ours) <= best.steps
