"""Figures. Every function draws into `ax`, or a new figure, and returns the axes; none shows it.

Within `style(preset)` they have the size of a paper's column, of a page or of a slide.
"""

from batchscale.plots._budgets import best_by_budget as best_by_budget
from batchscale.plots._comparison import comparison as comparison
from batchscale.plots._confirmation import confirmation as confirmation
from batchscale.plots._frontier import frontier as frontier
from batchscale.plots._learning_rates import learning_rates as learning_rates
from batchscale.plots._measured_trials import measured_trials as measured_trials
from batchscale.plots._measurement import measurement as measurement
from batchscale.plots._sensitivity import sensitivity as sensitivity
from batchscale.plots._variants import variants as variants
from batchscale.plots.presets import style as style
from batchscale.plots.saving import save as save
from batchscale.plots.scatter import hyperparameters as hyperparameters
from batchscale.plots.steps import steps_to_target as steps_to_target
from batchscale.plots.theory import noise_scale as noise_scale
from batchscale.plots.theory import sharpness as sharpness
from batchscale.plots.training import training_curves as training_curves
from batchscale.plots.tuning import tuning_curve as tuning_curve
