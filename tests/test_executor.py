"""Studies on an executor: the same tables as on one machine, whatever becomes of the workers."""

import contextlib
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import assert_same_tables, diverging, perceptron, study

import batchscale as bs
from batchscale.runner import desk, measure, pool, sending, worker
from batchscale.runner.pool import Task
from batchscale.theory import NoisyQuadratic

SIZES = [4, 32]


class KilledWorkerError(Exception):
    """What an executor of its own kind says of a worker that died."""


class UserError(Exception):
    """An error of a function of the user's."""


class AtOnce(Executor):
    """Calls what it is given at once; of some submissions, by number, the worker dies."""

    def __init__(self, lost=(), error=KilledWorkerError):
        self.lost, self.error, self.submitted = lost, error, 0

    def submit(self, function, /, *arguments):
        number, future = self.submitted, Future()
        self.submitted += 1
        if number in self.lost:
            future.set_exception(self.error("the worker has died"))
        else:
            future.set_result(function(*arguments))
        return future


def read_plan(folder):
    return bs.records.StudyFolder.open(folder, write=False).read_plan()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A study, its result on one machine, and the folder."""
    folder = tmp_path_factory.mktemp("alone") / "study"
    goal = bs.Goal("validation/error", 0.2)
    space = bs.SearchSpace(learning_rate=bs.LogUniform(0.3, 3.0))
    some = study(
        perceptron(), batch_sizes=SIZES, stop=3.0, goal=goal, max_steps=120, trials=4, space=space
    )
    return some, some.run(folder, progress=False), folder


def test_workers_make_the_plan_and_the_tables_of_one_machine(alone, tmp_path):
    some, result, folder = alone
    told = []
    with ThreadPoolExecutor(2) as executor:
        found = some.run(tmp_path / "study", progress=told.append, executor=executor)
    assert_same_tables(found, result)
    assert read_plan(tmp_path / "study") == read_plan(folder)
    (machine,) = found.runs()[-1]["workers"]
    assert machine["batch_sizes"] == SIZES
    # A callback is told that each begins, every row once, and that each ends.
    assert sum(len(progress.evaluations) for progress in told) == len(result.measurements)
    assert [progress.batch_size for progress in told[:2]] == [32, 4]  # the dearer one first
    ends = {progress.batch_size: progress.steps for progress in told if progress.finished}
    assert ends == dict(result.steps_to_target().set_index("batch_size")["steps"])
    # What is done is not sent again.
    nobody = AtOnce()
    assert_same_tables(some.run(tmp_path / "study", progress=False, executor=nobody), result)
    assert nobody.submitted == 0


CALLS = {
    "refine": {"rounds": 2, "trials": 2},
    "confirm": {"settings": 2, "selection_seeds": 2, "seeds": 3},
}


@pytest.mark.parametrize("call", CALLS)
def test_what_workers_do_after_a_search_is_what_one_machine_does(call, alone, tmp_path):
    some, _, folder = alone
    tables = []
    for name, executor in (("here", None), ("there", AtOnce(lost={1}))):
        shutil.copytree(folder, tmp_path / name)
        run = functools.partial(getattr(some, call), tmp_path / name, **CALLS[call])
        with pytest.warns(UserWarning, match="lost") if executor else contextlib.nullcontext():
            run(progress=False, executor=executor)
        tables.append(bs.records.load_tables(tmp_path / name / call))
    for here, there in zip(*tables, strict=True):
        assert len(here)
        pd.testing.assert_frame_equal(here, there, check_exact=True)
    assert read_plan(tmp_path / "here" / call) == read_plan(tmp_path / "there" / call)


@pytest.mark.slow
def test_a_measurement_by_workers_is_that_of_one_machine(tmp_path, monkeypatch):
    """Where both are told the same of how long steps take, which they time otherwise."""
    told = dict.fromkeys([4, 16, 64, 256], 1e-5)
    monkeypatch.setattr(measure, "seconds_per_step", lambda plan, engine, say: told)
    some = study(
        NoisyQuadratic.power_law(10).workload(),
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-1, 8.0)),
        batch_sizes=list(told),
        goal=bs.Goal("validation/risk", 0.1),
        evaluation_spacing=0.2,
        lanes="auto",
    )
    found = []
    for name, executor in (("here", None), ("there", AtOnce())):
        some.measure(tmp_path / name, 1.0, progress=False, executor=executor)
        found.append(bs.records.load_tables(tmp_path / name / "measure"))
    for here, there in zip(*found, strict=True):
        assert len(here) > 40
        pd.testing.assert_frame_equal(here, there, check_exact=True)


@pytest.mark.filterwarnings("ignore:no trial reached")
@pytest.mark.slow
def test_what_is_handed_back_in_parts_or_interrupted_goes_on_to_the_same_tables(
    tmp_path, monkeypatch
):
    """Trials diverge here, and others take their places."""
    one = diverging(perceptron(), max_steps=4, trials=3)
    whole = one.run(tmp_path / "whole", progress=False)
    assert (whole.trials["status"] == "infeasible").any()
    monkeypatch.setattr(desk, "SECONDS", 0.0)  # after every evaluation
    calls = []

    def interrupt(progress):
        calls.append(progress)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.run(tmp_path / "study", progress=interrupt, executor=AtOnce())
    before = len(bs.records.load_tables(tmp_path / "study")[0])
    assert 0 < before < len(whole.measurements)
    assert (tmp_path / "study/state/16.npz").exists()
    shutil.copytree(tmp_path / "study", tmp_path / "other")
    by_parts = AtOnce()
    assert_same_tables(one.run(tmp_path / "study", progress=False, executor=by_parts), whole)
    assert by_parts.submitted > 3
    assert_same_tables(one.run(tmp_path / "other", progress=False), whole)


@pytest.mark.filterwarnings("ignore:no trial reached")
@pytest.mark.slow
def test_bounds_are_measured_whole_by_workers_too(tmp_path):
    some = study(perceptron(validation=1000), batch_sizes=[32], max_steps=12, trials=2)
    some.run(tmp_path / "here", progress=False)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here = some.extend(tmp_path / "here", curves="exact", progress=False)
    executor = AtOnce()
    there = some.extend(tmp_path / "there", curves="exact", progress=False, executor=executor)
    assert executor.submitted == 1
    assert "validation/error_at_least" not in there.measurements
    assert_same_tables(there, here)


def failing_at(size):
    """A workload whose loss raises where it is given so many examples."""
    square = perceptron()

    def loss(params, model_state, batch, key, hyperparameters):
        if len(batch["label"]) == size:
            raise UserError(f"no batch of {size}")
        return square.loss(params, model_state, batch, key, hyperparameters)

    return dataclasses.replace(square, loss=loss)


def test_an_error_of_a_users_function_is_raised_as_it_is_and_the_others_are_written(
    alone, tmp_path
):
    some, result, _ = alone
    failing, executor = dataclasses.replace(some, workload=failing_at(32)), AtOnce()
    with pytest.raises(UserError, match="no batch of 32") as raised:
        failing.run(tmp_path, progress=False, executor=executor)
    assert "batch size 32:\nTraceback" in raised.value.__notes__[0]
    assert executor.submitted == 2  # it was not tried again
    trials = bs.records.load_tables(tmp_path)[1]
    pd.testing.assert_frame_equal(trials, result.trials.loc[[4]], check_exact=True)


def test_what_cannot_be_sent_is_named_before_anything_is_written(alone, tmp_path):
    lock, square = threading.Lock(), perceptron()

    def loss(*arguments):
        with lock:
            return square.loss(*arguments)

    some = dataclasses.replace(alone[0], workload=dataclasses.replace(square, loss=loss))
    executor = AtOnce()
    with pytest.raises(TypeError, match=r"executor: workload\.loss cannot be sent .*lock"):
        some.run(tmp_path / "study", executor=executor)
    assert executor.submitted == 0
    assert not (tmp_path / "study").exists()


def double(number):
    return {"doubled": 2 * number}


def doubled(executor, numbers):
    """What `pool.carry_out` makes of tasks that double numbers."""
    found = []

    def receive(returned):
        found.extend(one.value["doubled"] for one in returned)
        return ()

    tasks = [Task(f"task {number}", double, (number,)) for number in numbers]
    pool.carry_out(executor, tasks, receive)
    return sorted(found)


@pytest.mark.filterwarnings("ignore:executor. task")
def test_a_task_whose_worker_dies_is_tried_three_times():
    executor = AtOnce(lost={0, 3})
    assert doubled(executor, [1, 2, 3]) == [2, 4, 6]
    assert executor.submitted == 5
    always = AtOnce(lost=range(100))
    with pytest.raises(RuntimeError, match=r"task 1 was lost with its worker 3 times.*has died"):
        doubled(always, [1])
    assert always.submitted == 3


@pytest.mark.filterwarnings("ignore:executor. task")
def test_a_pool_that_breaks_is_made_again_where_it_is_known_how():
    with pytest.raises(RuntimeError, match=r"the pool broke under task 1.*lambda"):
        doubled(AtOnce(lost={0}, error=BrokenProcessPool), [1, 2])
    made = []

    def make():
        made.append(AtOnce(lost={0} if not made else (), error=BrokenProcessPool))
        return made[-1]

    assert doubled(make, [1, 2]) == [2, 4]
    assert len(made) == 2


class Answering(AtOnce):
    """Puts something in the place of what its tasks return."""

    def __init__(self, put):
        super().__init__()
        self.put = put

    def submit(self, function, /, *arguments):
        future = Future()
        future.set_result(self.put(super().submit(function, *arguments).result()))
        return future


def _changed(found, **changes):
    return {**found, "about": json.dumps({**json.loads(found["about"]), **changes})}


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (lambda _: {}, "does not fit its plan"),
        (lambda _: None, "is no answer"),
        (lambda _: [1], "is no answer"),
        (lambda _: "text", "is no answer"),
        (lambda _: {"error": "text"}, "is no answer"),
        (lambda _: {"error": {"module": "builtins"}}, "is no answer"),
        (lambda found: _changed(found, seconds={"training": -1.0}), "does not fit its plan"),
        (lambda found: _changed(found, seconds={"training": math.nan}), "does not fit its plan"),
        (lambda found: _changed(found, last=None, rows=[]), "does not fit its plan"),
    ],
)
@pytest.mark.slow
def test_what_is_no_answer_of_a_worker_is_refused_and_nothing_of_it_is_written(
    put, words, alone, tmp_path
):
    some, result, _ = alone
    with pytest.raises(ValueError, match=words):
        some.run(tmp_path / "study", progress=False, executor=Answering(put))
    with pytest.warns(UserWarning, match="not finished"):
        assert not len(bs.load(tmp_path / "study").steps_to_target())
    assert_same_tables(some.run(tmp_path / "study", progress=False), result)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 0}, {"width": -1}, {"width": None}, {"width": True}, {"seconds": []},
        {"seconds": [[4, -1.0], [16, 1.0], [64, 1.0], [256, 1.0]]}, {"seconds": None},
        {"seconds": [[4, math.nan], [16, 1.0], [64, 1.0], [256, 1.0]]},
    ],
)  # fmt: skip
def test_a_timing_that_cannot_be_is_refused(changes, tmp_path):
    some = study(
        NoisyQuadratic.power_law(10).workload(),
        space=bs.SearchSpace(learning_rate=bs.LogUniform(1e-1, 8.0)),
        batch_sizes=[4, 16, 64, 256],
        goal=bs.Goal("validation/risk", 0.1),
    )
    timing = {"seconds": [[size, 1e-5] for size in (4, 16, 64, 256)], "width": 4}
    executor = Answering(lambda _: {**timing, **changes})
    with pytest.raises(ValueError, match="of the timing does not fit"):
        some.measure(tmp_path / "study", 1.0, progress=False, executor=executor)
    assert not (tmp_path / "study/measure/plan.json").exists()


def test_what_is_no_future_is_told(alone, tmp_path):
    class Nothing(AtOnce):
        def submit(self, function, /, *arguments):
            return None

    with pytest.raises(TypeError, match="submit of Nothing returned None, wanted a future"):
        alone[0].run(tmp_path / "study", progress=False, executor=Nothing())


@pytest.mark.parametrize(
    ("executor", "words"),
    [
        (lambda: {}["partition"], "^'partition'$"),
        (lambda: None, "its function returned None, wanted a concurrent.futures.Executor"),
        ("shut down", "ThreadPoolExecutor, which has been shut down. Give one that is open"),
        ("closed later", "takes no task .RuntimeError: closed.. Give one that is open"),
    ],
)
def test_an_executor_that_takes_nothing_is_told(executor, words, tmp_path):
    if executor == "shut down":
        executor = ThreadPoolExecutor(1)
        executor.shutdown()
    elif executor == "closed later":
        executor = AtOnce()
        executor.submit = lambda *_: (_ for _ in ()).throw(RuntimeError("closed."))
    with pytest.raises((KeyError, TypeError, ValueError, RuntimeError), match=words):
        study(perceptron()).run(tmp_path / "study", progress=False, executor=executor)


def test_workers_of_a_pool_that_was_made_here_end_with_an_interruption():
    def made():
        return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def interrupt(*_):
        ours.update(set(multiprocessing.active_children()) - before)
        raise KeyboardInterrupt

    before, ours = set(multiprocessing.active_children()), set()
    former = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 3)
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.carry_out(made, [Task("task", time.sleep, (600,))], lambda returned: ())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert ours
    waited_until = time.monotonic() + 30
    while any(map(_is_there, ours)) and time.monotonic() < waited_until:
        time.sleep(0.1)
    assert not any(map(_is_there, ours))


def _is_there(process):
    """Whether a child has not ended; the pool may have waited for it before."""
    process.join(0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, 0)
        return True
    return False


def test_a_script_that_its_workers_import_is_told_what_to_write(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from batchscale.runner import pool\n"
        "def made():\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    return ProcessPoolExecutor(1, mp_context=spawn)\n"
        "pool.check(made)\n"
        "tasks = [pool.Task('task', len, ('ab',))]\n"
        "pool.carry_out(made, tasks, lambda returned: ())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("this one starts a pool again. Put what it calls below") == 3
    assert 'put the call below `if __name__ == "__main__":`. What came back' in done.stderr
    assert ".." not in done.stderr.splitlines()[-1]


def test_where_no_worker_answers_that_is_said(monkeypatch):
    monkeypatch.setattr(pool, "_SILENT", 0.05)
    lines = []

    class Late(AtOnce):
        def submit(self, function, /, *arguments):
            future = Future()
            threading.Timer(0.4, lambda: future.set_result(function(*arguments))).start()
            return future

    tasks = [Task("batch size 8", lambda: {"n": 1}, ())]
    pool.carry_out(Late(), tasks, lambda returned: (), lines.append)
    assert 1 < len(lines) < 5  # twice as long between each two
    assert "nothing has come back from workers for 0 s (batch size 8)" in lines[0]


def test_what_is_large_is_said_with_its_name(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(sending, "_LARGE", 1e4)
    large = np.ones(100_000, np.float32)
    other = study(perceptron())
    made = other.workload.init
    workload = dataclasses.replace(other.workload, init=lambda key: (large, made(key))[1])
    with pytest.warns(UserWarning, match=r"0 MB go out with every task.*of workload\.init"):
        dataclasses.replace(other, workload=workload)._away(AtOnce(), None)


def test_workers_that_were_forked_are_refused_before_they_hang(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_IMPORTED_IN", os.getppid())
    with pytest.raises(RuntimeError, match="Let them be spawned"):
        alone[0].run(tmp_path, progress=False, executor=AtOnce())


def dying_once(marker: Path):
    """A workload whose first process to have measured it ten times kills itself."""
    calls = []

    def finalize(sums):
        calls.append(None)
        if len(calls) == 10 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return float(sums)

    def spread_of(params, batch):
        return (batch["input"][:, 0] ** 2).sum()

    x = perceptron().splits()
    square = perceptron()
    return bs.Workload.from_functions(
        lambda key: square.init(key)[0],
        lambda params, batch: square.loss(params, {}, batch, None, {})[0],
        metrics={
            "error": lambda params, batch: square.metrics(params, {}, batch)["error"],
            "spread": spread_of,
        },
        finalize={"spread": finalize},
        data={name: dict(fields) for name, fields in x.items()},
    )


@pytest.mark.filterwarnings("ignore:no trial reached")
@pytest.mark.slow
@pytest.mark.slow
def test_a_dask_cluster_of_which_a_worker_is_killed_makes_the_same_tables(tmp_path):
    distributed = pytest.importorskip("distributed")
    marker = tmp_path / "killed"
    some = study(
        dying_once(marker), batch_sizes=SIZES, max_steps=20, trials=2, stop="budget",
    )  # fmt: skip
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        there = some.run(tmp_path / "there", progress=False, executor=client.get_executor())
    assert marker.exists()  # so that this process lives when it measures
    assert_same_tables(there, some.run(tmp_path / "here", progress=False))


_HEAP = """
import ctypes, sys
from batchscale.runner import worker

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
if not hasattr(libc, "mallinfo2"):
    sys.exit(77)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
changed = worker.keep_memory() if sys.argv[1] == "keep" else False
blocks = [libc.malloc(100_000) for _ in range(200)]  # below what is mapped by itself
for block in blocks:
    libc.free(ctypes.c_void_p(block))
print(changed, libc.mallinfo2().keepcost)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of the C library of Linux")
@pytest.mark.slow
def test_a_worker_keeps_the_memory_that_dask_would_have_it_give_back():
    """20 MB that were freed: kept for the next step, or given back to the system."""

    def left(how, **environment):
        run = subprocess.run(
            [sys.executable, "-c", _HEAP, how], env=os.environ | environment,
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        if run.returncode == 77:
            pytest.skip("another C library")
        assert run.returncode == 0, run.stderr
        changed, kept = run.stdout.split()
        return changed == "True", int(kept)

    trimmed = {"MALLOC_TRIM_THRESHOLD_": "65536"}
    assert left("leave", **trimmed)[1] < 2e6
    changed, kept = left("keep", **trimmed)
    assert changed
    assert kept > 1e7
    assert not left("keep", MALLOC_TRIM_THRESHOLD_="")[0]
