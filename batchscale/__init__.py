"""Measures, honestly and cheaply, what batch size does to neural-network training.

For every batch size the hyperparameters are tuned separately, and the steps needed to reach a goal
are measured (Shallue et al., "Measuring the Effects of Data Parallelism on Neural Network
Training", JMLR 20(112), 2019). Where to begin:

    Workload.from_model  a model and data: Flax Linen and NNX, Equinox, Haiku, functions
    recommend            which batch size and which settings, in one call
    pilot                the study that short runs suggest, and its price
    Study                a workload and an optimizer over batch sizes: run, extend, refine,
                         confirm, measure, run_trial
    load                 a study's result again, for .audit(), .scaling(), .report(path)
    compare              studies beside each other
    plots, theory        figures; noise scale, branches, the noisy quadratic
"""

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchscale import audit as audit
    from batchscale import datasets as datasets
    from batchscale import metrics as metrics
    from batchscale import models as models
    from batchscale import plots as plots
    from batchscale import scaling as scaling
    from batchscale import theory as theory
    from batchscale import tuner as tuner
    from batchscale import workloads as workloads
    from batchscale.archived import ArchivedResult as ArchivedResult
    from batchscale.archived import load_archive as load_archive
    from batchscale.comparing import Comparison as Comparison
    from batchscale.comparing import compare as compare
    from batchscale.evaluate import Evaluate as Evaluate
    from batchscale.measurement import Measurement as Measurement
    from batchscale.metrics import Goal as Goal
    from batchscale.piloting import Pilot as Pilot
    from batchscale.piloting import pilot as pilot
    from batchscale.recommending import Answer as Answer
    from batchscale.recommending import recommend as recommend
    from batchscale.records import DamagedError as DamagedError
    from batchscale.result import Result as Result
    from batchscale.result import load as load
    from batchscale.runner.progress import Progress as Progress
    from batchscale.runner.progress import TrialEvaluation as TrialEvaluation
    from batchscale.runner.trial_run import Checkpoint as Checkpoint
    from batchscale.runner.trial_run import TrialRun as TrialRun
    from batchscale.stored.repair import repair as repair
    from batchscale.study import Study as Study
    from batchscale.study import powers_of_two as powers_of_two
    from batchscale.tuner import Choice as Choice
    from batchscale.tuner import Integer as Integer
    from batchscale.tuner import LogHalfLife as LogHalfLife
    from batchscale.tuner import LogUniform as LogUniform
    from batchscale.tuner import ReverseLogUniform as ReverseLogUniform
    from batchscale.tuner import SearchSpace as SearchSpace
    from batchscale.tuner import ShareOfBudget as ShareOfBudget
    from batchscale.tuner import Uniform as Uniform
    from batchscale.tuner import half_life as half_life
    from batchscale.workloads import Workload as Workload

__version__ = _version("batchscale")

# Packages and names are imported when they are first used (PEP 562): figures alone cost a second.
_PACKAGES = (
    *("audit", "datasets", "metrics", "models", "plots", "records"),
    *("scaling", "theory", "tuner", "workloads"),
)
_NAMES = {
    "ArchivedResult": "archived",
    "load_archive": "archived",
    "Comparison": "comparing",
    "compare": "comparing",
    "Evaluate": "evaluate",
    "Measurement": "measurement",
    "Goal": "metrics",
    "Pilot": "piloting",
    "pilot": "piloting",
    "Answer": "recommending",
    "recommend": "recommending",
    "DamagedError": "records",
    "Result": "result",
    "load": "result",
    "Progress": "runner.progress",
    "TrialEvaluation": "runner.progress",
    "Checkpoint": "runner.trial_run",
    "TrialRun": "runner.trial_run",
    "repair": "stored.repair",
    "Study": "study",
    "powers_of_two": "study",
    "Choice": "tuner",
    "Integer": "tuner",
    "LogHalfLife": "tuner",
    "LogUniform": "tuner",
    "ReverseLogUniform": "tuner",
    "SearchSpace": "tuner",
    "ShareOfBudget": "tuner",
    "Uniform": "tuner",
    "half_life": "tuner",
    "Workload": "workloads",
}


__all__ = ["__version__", *_NAMES, *_PACKAGES]  # pyright: ignore


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"batchscale.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module 'batchscale' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"batchscale.{_NAMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    own = {name for name in globals() if name.startswith("__")}
    return sorted(own.union(__all__))
