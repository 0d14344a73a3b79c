"""What a study is given, checked before anything is trained or compiled."""

from batchscale.checks.arguments import PerBatchSize as PerBatchSize
from batchscale.checks.arguments import batch_sizes as batch_sizes
from batchscale.checks.arguments import budget as budget
from batchscale.checks.arguments import check_goal as check_goal
from batchscale.checks.arguments import check_several as check_several
from batchscale.checks.arguments import kinds as kinds
from batchscale.checks.arguments import patience as patience
from batchscale.checks.dependence import updates as updates
from batchscale.checks.functions import metric as metric
from batchscale.checks.hyperparameters import names as names
from batchscale.numeric import increasing as increasing
from batchscale.numeric import integer as integer
