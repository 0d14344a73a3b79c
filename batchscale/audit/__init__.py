"""Is an experiment careful enough to be believed? Named checks of a study's tables."""

from batchscale.audit._run import audit as audit
from batchscale.audit.checks import Audit as Audit
from batchscale.audit.checks import Check as Check
from batchscale.audit.checks import Verdict as Verdict
from batchscale.audit.measured import measured as measured
