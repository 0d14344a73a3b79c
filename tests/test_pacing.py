"""What a schedule made is no plateau: warm-ups and horizons are found, and other things are not."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import batchscale as bs
from batchscale import optimizers, scaling
from batchscale.confirmation import Confirmation
from batchscale.runner.pacing import paces
from batchscale.scaling import Pace, paced
from batchscale.schedules import constant, linear_decay

PARAMS = {
    "w": jax.ShapeDtypeStruct((5, 3), np.float32),
    "b": jax.ShapeDtypeStruct((3,), np.float32),
}
NAME = "steps not made by the schedule"


def warm_up(step, h):
    return h["learning_rate"] * jnp.minimum((jnp.float32(step) + 1.0) / h.get("warm_up", 10.0), 1.0)


def found(schedule, optimizer="sgd", plan=None, max_steps=5_000):
    plan = plan or [{"learning_rate": rate} for rate in (0.01, 0.1, 1.0)]
    at = paces(schedule, optimizers.get(optimizer), PARAMS, {8: plan}, {8: max_steps})
    return at.get(8, Pace())


def searched(**ranges):
    """Plans in which a hyperparameter of the schedule is searched over the values given."""
    ((name, values),) = ranges.items()
    return [{"learning_rate": 0.1, name: float(value)} for value in values]


def decay(steps):
    return [{"learning_rate": r, "learning_rate_decay_steps": float(steps),
             "end_learning_rate_factor": 0.01} for r in (0.1, 1.0)]  # fmt: skip


def test_a_linear_warm_up_matters_until_what_it_cost_is_an_eighth():
    # Of w steps at (t + 1) / w of the rate the sum of what is missing is (w - 1) / 2.
    assert found(warm_up).rises_until == 35  # 4.5 steps, lost of 36
    long = found(lambda step, h: h["learning_rate"] * jnp.minimum((step + 1) / 100, 1.0))
    assert long.rises_until == pytest.approx(8 * 99 / 2, rel=0.06)  # the grid is 5% apart
    slight = found(lambda step, h: h["learning_rate"] * jnp.where(step < 100, 0.9, 1.0))
    assert slight == Pace()  # a tenth of the steps is never an eighth


def test_a_linear_decay_decides_from_half_its_horizon_to_twice_that():
    horizon = found(linear_decay, plan=decay(400))
    assert horizon.rises_until == 0
    assert horizon.falls == pytest.approx((202, 796), rel=0.08)
    far = found(linear_decay, plan=decay(100_000))
    assert far == Pace()


@pytest.mark.parametrize(
    ("falls", "schedule"),
    [
        ((1_000, 2_000), lambda step, h: h["learning_rate"] * jnp.where(step < 1_000, 1.0, 0.1)),
        (
            None,
            lambda step, h: h["learning_rate"] / jnp.sqrt(jnp.float32(step) + 1.0),
        ),  # it has no horizon
        (None, lambda step, h: h["learning_rate"] * jnp.exp(-1e-5 * jnp.float32(step))),
        (None, constant),
    ],
)
def test_what_has_no_horizon_near_is_none(falls, schedule):
    pace = found(schedule)
    assert pace.rises_until == 0
    assert pace.falls == (None if falls is None else pytest.approx(falls, rel=0.06))


def test_a_length_that_is_searched_is_the_schedules_doing_only_if_all_of_its_range_is():
    assert found(warm_up, plan=searched(warm_up=np.geomspace(1, 50, 20))).rises_until <= 2
    assert found(warm_up, plan=searched(warm_up=np.linspace(10, 50, 20))).rises_until >= 35
    some = [decay(steps)[0] for steps in np.geomspace(50, 5_000, 20)]
    assert found(linear_decay, plan=some) == Pace()


@pytest.mark.parametrize(
    "make",
    [
        lambda h: optax.sgd(h["learning_rate"]),
        lambda h: optax.sgd(h["learning_rate"], momentum=0.95),
        lambda h: optax.sgd(h["learning_rate"], momentum=0.95, nesterov=True),
        lambda h: optax.adam(h["learning_rate"]),
        lambda h: optax.adamw(h["learning_rate"]),
        lambda h: optax.rmsprop(h["learning_rate"]),
        lambda h: optax.lion(h["learning_rate"]),
        lambda h: optax.adagrad(h["learning_rate"]),
        lambda h: optax.lamb(h["learning_rate"]),
        lambda h: optax.adafactor(h["learning_rate"]),
        lambda h: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(h["learning_rate"])),
    ],
)
def test_an_optimizer_that_gathers_momentum_is_no_warm_up(make):
    assert found(constant, make, max_steps=300) == Pace()


def test_a_warm_up_inside_ones_own_optimizer_is_found():
    def inside(h):
        return optax.adam(optax.linear_schedule(0.0, h["learning_rate"], 10), b1=0.9)

    # At step t of the first ten 1 - t / 10 of the rate is missing: 5.5 steps.
    assert found(constant, inside).rises_until == pytest.approx(44, abs=2)

    def cosine(h):
        return optax.sgd(optax.cosine_decay_schedule(h["learning_rate"], 1_000))

    assert found(constant, cosine).falls[0] == pytest.approx(470, rel=0.1)
    assert found(constant, cosine).rises_until == 0


def table(steps):
    sizes = [2**n for n in range(len(steps))]
    return pd.DataFrame({"batch_size": sizes, "steps": steps})


def everywhere(pace, steps):
    return dict.fromkeys(table(steps)["batch_size"], pace)


def test_a_plateau_at_a_warm_up_is_the_schedules_and_one_far_beyond_is_not():
    steps = [900.0, 460, 230, 120, 65, 40, 26, 19, 18, 17, 17]
    at = paced(table(steps), everywhere(Pace(rises_until=35), steps))
    assert at.plateau
    assert at.rising == (64, 128, 256, 512, 1024)
    assert "17 to 26 steps at batch sizes 64, 128, 256, 512, 1024" in at.why
    far = paced(table([10 * s for s in steps]), everywhere(Pace(rises_until=35), steps))
    assert (far.plateau, far.why, far.refusal) == (False, "", "")


def test_only_small_batches_at_a_horizon_leave_the_plateau_alone():
    steps = [900.0, 460, 230, 120, 65, 40, 26, 19, 18, 17, 17]
    found = paced(table(steps), everywhere(Pace(falls=(300, 1200)), steps))
    assert found.falling == (1, 2)
    assert not found.plateau
    assert paced(table([math.inf, math.inf]), {}).why == ""


def test_a_confirmation_refuses_what_its_study_does():
    steps = table([900.0, 460, 230, 120, 65, 40, 26, 19, 18, 17, 17])
    steps = steps.assign(previous_evaluation=0.95 * steps["steps"], trial=0)
    confirmed = Confirmation(steps, steps.iloc[:0], steps.iloc[:0], 0.9)
    assert confirmed.scaling().b_crit > 20
    late = dataclasses.replace(confirmed, paces=everywhere(Pace(rises_until=35), steps["steps"]))
    assert math.isnan(late.scaling().b_crit)
    assert "the plateau may be the schedule's: the learning rate rises" in str(late.scaling())
    assert "critical batch size is quoted: the plateau may be" in str(late.recommend())


def test_no_reading_of_the_curve_takes_the_schedules_plateau_for_one():
    steps = table([900.0, 460, 230, 120, 65, 40, 26, 19, 18, 17, 17])
    paces = everywhere(Pace(rises_until=35), steps["steps"])
    assert scaling.regimes(steps).plateau_from == 128
    assert math.isnan(scaling.regimes(steps, paces=paces).plateau_from)
    assert scaling.regimes(steps, paces=paces).perfect_until == 16  # 1,040 examples for 900
    variants = steps.assign(variant="error < 0.1")
    assert scaling.transitions(variants)["b_crit"].iloc[0] > 20
    moved = scaling.transitions(variants, paces=paces).iloc[0]
    assert math.isnan(moved["b_crit"])
    assert math.isnan(moved["plateau_from"])
    assert "schedule" in moved["refused"]
    told = scaling.recommend(steps, paces=paces)
    assert told.fit.refused == moved["refused"]
    assert math.isnan(told.regimes.plateau_from)


def regression():
    """Linear regression; its validation loss is the distance to the truth."""
    random, size = np.random.default_rng(0), 6
    scales = np.linspace(1, 0.4, size)
    x = random.normal(size=(512, size)) * scales
    y = x.sum(1) + random.normal(size=512)
    checks = np.diag(scales) * size**0.5
    return bs.Workload.from_functions(
        lambda key: {"w": jnp.zeros(size)},
        lambda params, batch: 0.5 * (batch["input"] @ params["w"] - batch["label"]) ** 2,
        data={"train": (x, y), "validation": (checks, checks.sum(1))},
        name="regression",
    )


@pytest.mark.long
def test_a_warm_up_of_ten_steps_does_not_pass_for_a_critical_batch_size(tmp_path):
    study = bs.Study(
        workload=regression(),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=bs.LogUniform(3e-3, 3)),
        batch_sizes=[1, 4, 16, 64, 256],
        goal=bs.Goal("validation/loss", 0.02),
        trials=12,
        max_steps=1_000,
    )
    plain = study.run(tmp_path / "plain", progress=False)
    assert plain.audit().of(NAME).verdict == "pass"
    truth = scaling.fit(plain.steps_to_target()).b_crit
    late = dataclasses.replace(study, schedule=warm_up).run(tmp_path / "late", progress=False)
    assert late.steps_to_target()["steps"].iloc[-1] < 20
    # What was quoted before: another critical batch size, and quite sure of it.
    assert scaling.fit(late.steps_to_target()).b_crit_interval.high < truth
    fit = late.scaling()
    assert math.isnan(fit.b_crit)
    assert fit.refused.startswith("the plateau may be the schedule's")
    check = late.audit().of(NAME)
    assert check.verdict == "fail"
    assert "its rise has cost over an eighth of the steps" in check.evidence
    # Tables alone say so too: the schedule is not at hand when a study is loaded.
    assert bs.load(tmp_path / "late").paces[256] == Pace(rises_until=35)


def test_a_plan_without_paces_is_not_known(tmp_path):
    study = bs.Study(
        workload=regression(),
        optimizer="sgd",
        space=bs.SearchSpace(learning_rate=0.3, warm_up=10.0),
        batch_sizes=[8],
        goal=bs.Goal("validation/loss", 0.5),
        trials=1,
        max_steps=40,
        schedule=warm_up,
    )
    study.run(tmp_path, progress=False)
    with bs.records.StudyFolder.open(tmp_path) as folder:
        plan = folder.read_plan()
        plan["paces"] = None
        folder.write_plan(plan)
    older = bs.load(tmp_path)
    assert older.paces is None
    assert older.audit().of(NAME).verdict == "unknown"


def test_names_of_the_librarys_own_say_nothing_of_a_function(tmp_path):
    """A warm-up is found in an optimizer and a schedule called as those that have none."""

    def sgd(h):
        ramp = optax.linear_schedule(0.0, h["learning_rate"], 150)
        return optax.sgd(ramp)

    def constant(step, h):
        return h["learning_rate"] * jnp.minimum((jnp.float32(step) + 1) / 150, 1.0)

    common = {
        "workload": regression(),
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(0.1, 1)),
        "batch_sizes": [64],
        "goal": bs.Goal("validation/loss", 0.1),
        "trials": 3,
        "max_steps": 400,
    }
    for name, own in (
        ("one", {"optimizer": sgd}),
        ("two", {"optimizer": "sgd", "schedule": constant}),
    ):
        result = bs.Study(**common, **own).run(tmp_path / name, progress=False)
        assert result.paces[64].rises_until > 300
        assert result.audit().of(NAME).verdict in ("warn", "fail")


def ramp(h, steps):
    return lambda count: h["learning_rate"] * jnp.minimum((count + 1) / steps, 1.0)


def test_where_updates_do_not_show_the_rate_it_is_not_known():
    def noisy(h, key):
        return optax.chain(optax.add_noise(1e-3, 0.55, key), optax.sgd(ramp(h, 200)))

    def seldom(h):
        return optax.MultiSteps(optax.sgd(ramp(h, 100)), 2)

    def restarts(h):
        cosine = optax.cosine_decay_schedule(1.0, 50)
        return optax.sgd(lambda count: h["learning_rate"] * cosine(count % 50))

    def noisy_alone(h):
        return optax.noisy_sgd(h["learning_rate"], eta=1.0)

    for own in (noisy, seldom, restarts, noisy_alone):
        assert found(constant, own) == Pace(known_until=0)
    late = found(constant, lambda h: optax.sgd(ramp(h, 8_000)), max_steps=20_000)
    assert late == Pace(rises_until=2047, known_until=2048)
    assert not late.rising(4_000)
    assert not late.knows(4_000)
    for own in (optax.adam, optax.adamw, optax.lion, lambda rate: optax.sgd(rate, momentum=0.9)):
        assert found(constant, lambda h, own=own: own(h["learning_rate"])) == Pace()
    steps = table([900.0, 460, 230, 120])
    assert paced(steps, {8: Pace(known_until=0), 4: Pace(known_until=230)}).unknown == (8,)
    with pytest.raises(TypeError, match="at '8', wanted a mapping from batch sizes"):
        paced(steps, {"8": Pace()})
    with pytest.raises(ValueError, match="wanted whole numbers of steps"):
        Pace(rises_until=math.nan)


def test_the_schedule_is_named_before_other_reasons_and_no_gain_is_quoted():
    steps = pd.DataFrame({"batch_size": [64, 256, 1024], "steps": [55, 31, 28]})
    told = str(scaling.recommend(steps, paces=dict.fromkeys([64, 256, 1024], Pace(60))))
    assert "Where the gain ends is not known" in told
    assert "the plateau may be the schedule's" in told
    assert "3 batch sizes reach the goal" in told
    assert "no gain beyond" not in told
