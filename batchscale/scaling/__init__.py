"""Where perfect scaling ends, where the plateau begins, and the critical batch size between them.

Time against cost, which batch size to train with, and how the best learning rate moves with it.
Everything works on tables, whoever made them: that of `metrics.steps_to_target`, or, for learning
rates, measurements and trials.
"""

from batchscale.scaling._extrapolation import Extrapolation as Extrapolation
from batchscale.scaling._extrapolation import PowerLaw as PowerLaw
from batchscale.scaling._extrapolation import power_law as power_law
from batchscale.scaling._frontier import Recommendation as Recommendation
from batchscale.scaling._frontier import StepTimes as StepTimes
from batchscale.scaling._frontier import frontier as frontier
from batchscale.scaling._frontier import recommend as recommend
from batchscale.scaling._learning_rates import Rules as Rules
from batchscale.scaling._learning_rates import learning_rates as learning_rates
from batchscale.scaling._learning_rates import rules as rules
from batchscale.scaling._regimes import Regimes as Regimes
from batchscale.scaling._regimes import overhead as overhead
from batchscale.scaling._regimes import regimes as regimes
from batchscale.scaling._transitions import transitions as transitions
from batchscale.scaling.averaging import LUCK as LUCK
from batchscale.scaling.curve import Form as Form
from batchscale.scaling.curve import Interval as Interval
from batchscale.scaling.curve import deviations as deviations
from batchscale.scaling.fitted import Fit as Fit
from batchscale.scaling.fitted import Refusal as Refusal
from batchscale.scaling.fitting import fit as fit
from batchscale.scaling.pace import Pace as Pace
from batchscale.scaling.pace import Paced as Paced
from batchscale.scaling.pace import paced as paced
