"""Steps to target and budgets: what the tables of a study say, by exact definitions.

All are pure functions on `measurements`, indexed by (batch_size, trial, replicate, step) with
a column a "split/metric", and on `trials`, indexed by (batch_size, trial, replicate), in the
form of `batchscale.records.measurement_table` and `trial_table`. Reruns of a trial under
other seeds (replicate > 0) do not count towards a minimum over trials.

Where a function takes `trials`, that table says which trials may count: select its rows to
leave some out, as in `trials[trials.status != "incomplete"]`.
"""

from batchscale.metrics._best_of import best_of as best_of
from batchscale.metrics._best_of import tuning_curve as tuning_curve
from batchscale.metrics._tables import example_measurements as example_measurements
from batchscale.metrics._tables import with_goal as with_goal
from batchscale.metrics._variants import variants as variants
from batchscale.metrics.budgets import best_by_budget as best_by_budget
from batchscale.metrics.budgets import best_measurement as best_measurement
from batchscale.metrics.budgets import epoch_budget as epoch_budget
from batchscale.metrics.budgets import last_steps as last_steps
from batchscale.metrics.budgets import step_budget as step_budget
from batchscale.metrics.goal import BOUNDS as BOUNDS
from batchscale.metrics.goal import Goal as Goal
from batchscale.metrics.goal import Mode as Mode
from batchscale.metrics.steps import first_crossings as first_crossings
from batchscale.metrics.steps import members as members
from batchscale.metrics.steps import steps_to_target as steps_to_target
from batchscale.metrics.steps import steps_to_targets as steps_to_targets
