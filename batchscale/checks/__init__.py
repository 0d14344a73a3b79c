"""The functions of a study, traced: what does not fit is refused before anything is compiled."""

from batchscale.checks.dependence import updates as updates
from batchscale.checks.functions import metric as metric
from batchscale.checks.hyperparameters import names as names
