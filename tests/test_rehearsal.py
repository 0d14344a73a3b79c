"""Before the first step: layouts that do not fit into memory, and lanes that are timed."""

import math
import os
import re

import jax
import pytest
from helpers import assert_same_tables, study

from batchscale.engine import autotune, devices
from batchscale.engine.engine import Engine

NONE_FITS = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")


def small(workload, **changes):
    return study(workload, **{"batch_sizes": [32, 64], "trials": 4, "max_steps": 60} | changes)


@pytest.mark.slow
def test_a_layout_that_needs_too_much_memory_is_made_smaller_before_the_first_step(
    square, tmp_path, monkeypatch
):
    memory = Engine.memory

    def needed(self, batch_size, layout, trials):
        assert memory(self, batch_size, layout, trials) > 0
        return layout.microbatch * layout.lanes

    monkeypatch.setattr(Engine, "memory", needed)
    monkeypatch.setattr(Engine, "memory_limit", 20)  # 18 of it may be planned for
    with pytest.warns(UserWarning, match="Runs with 1 lanes and microbatches of 16 instead"):
        result = small(square).run(tmp_path / "fits", progress=False)
    layouts = result.layouts().set_index("batch_size")
    assert layouts["lanes"].tolist() == [1, 1]
    assert layouts["microbatch"].tolist() == [16, 16]
    assert "GB needed on a device" in layouts.loc[32, "why"]
    monkeypatch.undo()
    same = small(square, lanes=1, microbatch=16).run(tmp_path / "same", progress=False)
    assert_same_tables(result, same)
    # What was found stays so, also where there would be memory now.
    assert_same_tables(small(square).run(tmp_path / "fits", progress=False), same)


def test_a_device_that_runs_out_of_memory_gets_less(square, tmp_path, monkeypatch):
    advance = Engine.advance

    def limited(self, packs, **options):
        if options["layout"].microbatch > 16:
            raise NONE_FITS
        advance(self, packs, **options)

    monkeypatch.setattr(Engine, "advance", limited)
    with pytest.warns(UserWarning, match=r"batch size \d+: 2 lanes, microbatch \d+: out of memory"):
        result = small(square).run(tmp_path, progress=False)
    assert result.layouts()["microbatch"].tolist() == [16, 16]


def test_what_never_fits_is_refused_with_what_to_do(square, tmp_path, monkeypatch):
    def full(*_, **__):
        raise NONE_FITS

    monkeypatch.setattr(Engine, "advance", full)
    with pytest.raises(MemoryError, match="one trial at a time and microbatches of 1"):
        small(square).run(tmp_path, progress=False)


def test_other_errors_are_not_taken_for_a_lack_of_memory(square, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("INTERNAL: something else")

    monkeypatch.setattr(Engine, "advance", broken)
    with pytest.raises(RuntimeError, match="something else"):
        small(square).run(tmp_path, progress=False)


@pytest.mark.parametrize(
    ("times", "best", "timed"),
    [
        ({1: 4.0, 2: 3.0, 4: 2.0}, 4, "1: 4e+06, 2: 3e+06, 4: 2e+06"),
        ({1: 1.0, 2: 3.0, 4: 2.0}, 1, "1: 1e+06, 2: 3e+06"),
        ({1: 3.0, 2: 3.0, 4: 3.0}, 2, "1: 3e+06, 2: 3e+06, 4: 3e+06"),
        ({1: 3.0, 2: 2.0, 4: math.inf}, 2, "1: 3e+06, 2: 2e+06, 4: inf"),  # out of memory
    ],
)
def test_a_probe_climbs_to_the_fastest_lanes_and_says_what_it_found(times, best, timed):
    found = f"microseconds a step of a trial by lanes: {timed}"
    assert autotune.fastest_lanes(2, 4, times.__getitem__) == (best, found)


@pytest.mark.slow
def test_a_probe_takes_real_times_and_the_study_is_that_of_the_lanes_it_found(
    square, tmp_path, monkeypatch
):
    some = small(square, batch_sizes=[32], lanes="probe")
    result = some.run(tmp_path / "probed", progress=False)
    layouts = result.layouts()
    (lanes,), (why,) = layouts["lanes"], layouts["why"]
    found = {int(n): float(time) for n, time in re.findall(r"(\d+): ([\d.e+]+)", why)}
    assert [*found] == [1, 2]  # four trials on two devices
    other = 3 - lanes
    assert found[lanes] < found[other] / 0.95
    monkeypatch.setattr(autotune, "seconds_per_step", None)  # it is not asked again
    some.run(tmp_path / "probed", progress=False)
    fixed = small(square, batch_sizes=[32], lanes=lanes)
    assert_same_tables(result, fixed.run(tmp_path / "fixed", progress=False))


def test_a_cpu_device_has_its_share_of_the_memory():
    whole = devices.memory(jax.devices()[0])
    if whole is None:
        pytest.skip("the operating system does not tell")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < whole <= machine // len(jax.devices())


def test_a_step_of_one_trial_is_timed_at_every_batch_size(square, tmp_path, monkeypatch):
    clock = {"now": 0.0}

    def advance(self, packs, *, batch_size, layout, step, to):
        assert layout.lanes == self.mesh.size == 1
        clock["now"] += (to - step) * batch_size * 1e-3

    monkeypatch.setattr(Engine, "advance", advance)
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: clock["now"])
    times = small(square).seconds_per_step()
    assert times["batch_size"].tolist() == [32, 64]
    assert times["seconds_per_step"].tolist() == pytest.approx([0.032, 0.064])
    monkeypatch.undo()
    result = small(square).run(tmp_path, progress=False)
    table = result.frontier(seconds_per_step=times)
    assert table["seconds"].tolist() == pytest.approx((table["steps"] * [0.032, 0.064]).tolist())
