"""What a study was run under is recorded, and compared when it goes on."""

import re
import shutil
from pathlib import Path

import jax
import pandas as pd
import pytest
from helpers import perceptron

import batchscale as bs
from batchscale import records
from batchscale.plan import Plan


def study(**changes):
    fields = {
        "workload": perceptron(),
        "optimizer": "sgd",
        "space": bs.SearchSpace(learning_rate=bs.LogUniform(0.3, 3)),
        "batch_sizes": [8, 16],
        "goal": bs.Goal("validation/error", 0.5),
        "trials": 2,
        "max_steps": 12,
        "stop": "budget",
    }
    return bs.Study(**fields | changes)


def conditions(folder):
    with records.StudyFolder.open(folder, write=False) as stored:
        return Plan.from_json(stored.read_plan()).conditions


class Stop(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of which the second batch size was interrupted."""
    folder = tmp_path_factory.mktemp("conditions")

    def stop(progress):
        if progress.batch_size == 16 and progress.step == 6:
            raise Stop

    with pytest.raises(Stop):
        study().run(folder, progress=stop)
    return folder


def test_every_batch_size_says_what_it_began_under(folder):
    device = jax.devices()[0]
    here = {
        "float_type": "float32",
        "matmul_precision": "default",
        "jax": jax.__version__,
        "jaxlib": jax.lib.__version__,
        "backend": "cpu",
        "device": device.device_kind,
        "devices": "several",
    }
    assert conditions(folder) == {8: [here], 16: [here]}


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize(
    ("context", "message"),
    [
        (
            lambda: jax.enable_x64(True),
            "batch size 8, 16 was begun with float_type float32, and here it is float64: trials "
            "would be others. Run it with JAX_ENABLE_X64 as it was then",
        ),
        (
            lambda: jax.default_matmul_precision("bfloat16"),
            "batch size 8, 16 was begun with matmul_precision default, and here it is bfloat16: "
            "trials would be others. Set jax_default_matmul_precision as it was then",
        ),
    ],
)
def test_another_type_of_floats_or_precision_is_refused(folder, context, message):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with context():
        for go_on in (
            lambda: study().run(folder, progress=False),
            lambda: study().extend(folder, trials=3, progress=False),
            lambda: study().extend(folder, batch_sizes=[8, 32], progress=False),
            lambda: study().run_trial(batch_size=8, trial=0, folder=folder),
        ):
            with pytest.raises(ValueError, match=re.escape(f"{folder}: {message}")):
                go_on()
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_version_is_told_and_recorded_where_it_trains(folder, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(folder, tmp_path / "copy"))
    here = records.conditions
    monkeypatch.setattr(records, "conditions", lambda *about: here(*about) | {"jax": "0.99"})
    message = f"batch size 8, 16 was run elsewhere (jax {jax.__version__}, here 0.99)"
    with pytest.warns(UserWarning, match=re.escape(message)):
        study().run_trial(batch_size=8, trial=0, folder=folder, steps=1)
    with pytest.warns(UserWarning, match=re.escape(message)):
        result = study().run(folder, progress=False)
    found = conditions(folder)
    assert [under["jax"] for under in found[8]] == [jax.__version__]  # it was finished
    assert [under["jax"] for under in found[16]] == [jax.__version__, "0.99"]
    whole = study().run(tmp_path / "whole", progress=False)
    pd.testing.assert_frame_equal(result.trials, whole.trials, check_exact=True)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="batch size 16 was run elsewhere"):
        study().run(folder, progress=False)


@pytest.mark.slow
def test_what_follows_a_search_says_too_what_it_ran_under(tmp_path, monkeypatch):
    goal = bs.Goal("validation/error", 0.35)
    some = study(goal=goal, trials=4, max_steps=100, stop=4.0)
    some.run(tmp_path, progress=False)
    here = records.conditions
    confirming = {"settings": 2, "selection_seeds": 3, "progress": False}

    def of(name):
        with records.StudyFolder.open(tmp_path / name, write=False) as stored:
            found = stored.read_plan()["conditions"]
        return {size: [under["jax"] for under in own] for size, own in found.items()}

    some.refine(tmp_path, rounds=1, trials=2, progress=False)
    some.confirm(tmp_path, seeds=3, **confirming)
    now = jax.__version__
    assert of("refine") == of("confirm") == {"8": [now], "16": [now]}
    monkeypatch.setattr(records, "conditions", lambda *about: here(*about) | {"jax": "0.99"})
    with pytest.warns(UserWarning, match="was run elsewhere"):
        some.confirm(tmp_path, seeds=4, **confirming)
    assert of("refine") == {"8": [now], "16": [now]}
    assert of("confirm") == {"8": [now, "0.99"], "16": [now, "0.99"]}
    with pytest.warns(UserWarning, match="was run elsewhere"):
        some.confirm(tmp_path, seeds=4, **confirming)  # nothing is left to be run
    assert of("confirm") == {"8": [now, "0.99"], "16": [now, "0.99"]}


def test_a_single_trial_of_another_study_is_refused_as_a_run_is(folder):
    other = study(workload=perceptron(width=8))
    for go_on in (
        lambda: other.run(folder, progress=False),
        lambda: other.run_trial(batch_size=8, trial=0, folder=folder),
    ):
        with pytest.raises(ValueError, match=r"holds another study \(the model, its loss"):
            go_on()
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
        study(seed=1).run_trial(batch_size=8, trial=0, folder=folder)
    with pytest.raises(ValueError, match="its study has no batch size 32; wanted one of 8, 16"):
        study(batch_sizes=[32]).run_trial(batch_size=32, trial=0, folder=folder)
