"""Search spaces, plans of trials, the best trial of each batch size, and the share that works."""

from batchscale.tuner._sensitivity import sensitivity as sensitivity
from batchscale.tuner.best import derived as derived
from batchscale.tuner.best import effective_learning_rate as effective_learning_rate
from batchscale.tuner.best import optima as optima
from batchscale.tuner.crowded import Crowded as Crowded
from batchscale.tuner.crowded import crowded_edges as crowded_edges
from batchscale.tuner.distributions import Choice as Choice
from batchscale.tuner.distributions import Distribution as Distribution
from batchscale.tuner.distributions import Integer as Integer
from batchscale.tuner.distributions import LogHalfLife as LogHalfLife
from batchscale.tuner.distributions import LogUniform as LogUniform
from batchscale.tuner.distributions import ReverseLogUniform as ReverseLogUniform
from batchscale.tuner.distributions import Uniform as Uniform
from batchscale.tuner.medians import leading as leading
from batchscale.tuner.planning import plan as plan
from batchscale.tuner.refining import crowding as crowding
from batchscale.tuner.refining import expand as expand
from batchscale.tuner.refining import refine as refine
from batchscale.tuner.refining import spread as spread
from batchscale.tuner.search_space import SearchSpace as SearchSpace
from batchscale.tuner.units import ShareOfBudget as ShareOfBudget
from batchscale.tuner.units import half_life as half_life
