"""Every way of packing trials gives what the plain run gives: one trial at a time, nothing cut."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import points

import batchscale as bs
from batchscale.engine import feed, layout

TRIALS = 5


@pytest.fixture(scope="module")
def network():
    """A random small network: its widths and its data are drawn, with a fixed seed."""
    random = np.random.default_rng(7)
    widths = random.integers(5, 12, 3)

    def init(key):
        sizes = [3, *widths, 3]
        keys = jax.random.split(key, len(sizes) - 1)
        return [
            jax.random.normal(k, (a, b)) / a**0.5
            for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]

    def logits(params, batch):
        x = batch["input"].astype(params[0].dtype)
        x = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], 1)
        for weights in params[:-1]:
            x = jax.nn.relu(x @ weights)
        return x @ params[-1]

    def loss(params, batch):
        chosen = jax.nn.log_softmax(logits(params, batch))
        return -chosen[np.arange(len(batch["label"]), dtype=np.int32), batch["label"]]

    return bs.Workload.from_functions(
        init,
        loss,
        metrics={
            "error": lambda p, batch: logits(p, batch).argmax(-1).astype("int32") != batch["label"]
        },
        data={"train": points(90), "validation": points(1_040, 1)},
    )


def study(workload, **changes):
    fields = {
        "workload": workload,
        "optimizer": "momentum",
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(0.03, 3), momentum=0.8),
        "batch_sizes": [12, "full"],
        "goal": bs.Goal("validation/error", 0.3),
        "trials": TRIALS,
        "max_steps": 400,
        "stop": 1.3,
    }
    return bs.Study(**fields | changes)


@pytest.fixture(scope="module")
def plain(network, tmp_path_factory):
    """One trial at a time, whole batches, one device, whole evaluations, in double precision."""
    with jax.enable_x64(True):
        return study(network, lanes=1, microbatch=10**6, curves="exact").run(
            tmp_path_factory.mktemp("plain"), progress=False, devices=jax.devices()[:1]
        )


@pytest.mark.parametrize(
    ("lanes", "together", "microbatch", "devices"),
    [
        pytest.param(1, 1, 12, 1, marks=pytest.mark.long),
        pytest.param(2, 2, 4, 2, marks=pytest.mark.long),
        pytest.param(4, 1, 7, 1, marks=pytest.mark.long),
        (4, 2, 5, 2),  # 12 is 5 + 5 + 2
        pytest.param(8, 8, 12, 2, marks=pytest.mark.long),
    ],
)
@pytest.mark.slow
def test_fast_paths_give_the_answer_and_the_curves_of_the_plain_run(
    lanes, together, microbatch, devices, network, plain, tmp_path, monkeypatch
):
    choose = layout.choose
    monkeypatch.setattr(
        layout, "choose", lambda *a, **k: choose(*a, **k)._replace(evaluation_lanes=together)
    )
    with jax.enable_x64(True):
        fast = study(network, lanes=lanes, microbatch=microbatch).run(
            tmp_path, progress=False, devices=jax.devices()[:devices]
        )
    pd.testing.assert_frame_equal(fast.steps_to_target(), plain.steps_to_target(), check_exact=True)
    pd.testing.assert_frame_equal(fast.trials, plain.trials, check_exact=True)
    assert fast.measurements.index.equals(plain.measurements.index)
    error, loss = "validation/error", "validation/loss"
    truth, found = plain.measurements, fast.measurements
    whole = found[error].notna()
    assert 0.02 < whole.mean() < 0.5
    np.testing.assert_array_equal(found[error][whole], truth[error][whole])
    np.testing.assert_allclose(found[loss][whole], truth[loss][whole], rtol=1e-8)
    assert not plain.goal.reached(truth[error][~whole]).any()
    assert (found[plain.goal.bound][~whole] <= truth[error][~whole]).all()


def test_digits_stop_at_the_same_step_with_and_without_bounds_and_lanes(tmp_path):
    fields = {
        "workload": bs.workloads.get("digits/fc_64"),
        "optimizer": "sgd",
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(1e-2, 1)),
        "batch_sizes": [64],
        "goal": bs.Goal("validation/error", 0.1),
        "trials": 4,
        "max_steps": 300,
    }
    with jax.enable_x64(True):
        results = [
            bs.Study(**fields, lanes=lanes, microbatch=microbatch, curves=curves).run(
                tmp_path / f"{lanes}{microbatch}{curves}", progress=False
            )
            for lanes, microbatch, curves in (
                (1, 64, "exact"),
                (4, 24, "bounds"),
            )
        ]
    for other in results[1:]:
        pd.testing.assert_frame_equal(
            results[0].steps_to_target(), other.steps_to_target(), check_exact=True
        )


@pytest.mark.long
def test_eight_devices_give_the_bits_of_fewer(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        import jax
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 8)
        sys.path.insert(0, sys.argv[2])
        import pandas as pd
        from helpers import perceptron
        import batchscale as bs
        jax.config.update("jax_num_cpu_devices", 8)
        rate = bs.LogUniform(1e-2, 1e20)
        for optimizer, space, counts in (
            ("momentum", bs.SearchSpace(learning_rate=rate, momentum=0.5), (1, 8)),
            ("adam", bs.SearchSpace(learning_rate=rate), (2, 8)),  # whose updates divide
        ):
            study = bs.Study(
                workload=perceptron(), optimizer=optimizer, space=space,
                batch_sizes=[8], goal=bs.Goal("validation/error", 0.15), trials=11,
                max_steps=150, lanes=2, microbatch=3,
            )
            some, other = (
                study.run(
                    f"{sys.argv[1]}/{optimizer}{n}", progress=False, devices=jax.devices()[:n]
                )
                for n in counts
            )
            assert optimizer == "adam" or (some.trials["status"] == "infeasible").any()
            pd.testing.assert_frame_equal(some.trials, other.trials, check_exact=True)
            pd.testing.assert_frame_equal(
                some.measurements, other.measurements, check_exact=True
            )
        print(len(jax.devices()), "devices agree")
        """
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(__file__).rpartition("/")[0]],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "8 devices agree" in found.stdout, found.stderr[-3000:]


@pytest.mark.long
def test_batches_larger_than_what_is_drawn_at_once_have_a_program_of_their_own(
    network, tmp_path, monkeypatch
):
    some = study(network, batch_sizes=[8, 32], microbatch=4, lanes=2, stop="first")
    whole = some.run(tmp_path / "whole", progress=False)
    monkeypatch.setattr(feed, "DRAWN_AT_ONCE", 16)  # so that 8 draws for two steps, and 32 for one
    parts = some.run(tmp_path / "parts", progress=False)
    pd.testing.assert_frame_equal(parts.trials, whole.trials, check_exact=True)
    pd.testing.assert_frame_equal(parts.measurements, whole.measurements, check_exact=True)
