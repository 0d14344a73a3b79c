"""Figures. Every function draws into `ax`, or a new figure, and returns the axes; none shows it."""

from batchscale.plots.common import save as save
from batchscale.plots.confirmation import confirmation as confirmation
from batchscale.plots.frontier import frontier as frontier
from batchscale.plots.learning_rates import learning_rates as learning_rates
from batchscale.plots.scatter import hyperparameters as hyperparameters
from batchscale.plots.sensitivity import sensitivity as sensitivity
from batchscale.plots.steps import steps_to_target as steps_to_target
from batchscale.plots.theory import noise_scale as noise_scale
from batchscale.plots.theory import sharpness as sharpness
from batchscale.plots.training import training_curves as training_curves
from batchscale.plots.tuning import tuning_curve as tuning_curve
from batchscale.plots.variants import variants as variants
