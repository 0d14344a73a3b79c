"""Where perfect scaling ends, where the plateau begins, and the critical batch size between them.

Everything works on the table of `metrics.steps_to_target`, whoever made it.
"""

from batchscale.scaling.curve import Form as Form
from batchscale.scaling.curve import Interval as Interval
from batchscale.scaling.fitting import Fit as Fit
from batchscale.scaling.fitting import fit as fit
from batchscale.scaling.regimes import Regimes as Regimes
from batchscale.scaling.regimes import overhead as overhead
from batchscale.scaling.regimes import regimes as regimes
