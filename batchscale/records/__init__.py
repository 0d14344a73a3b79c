"""What a study leaves on disk: its plan, its tables and its unfinished training states."""

from batchscale.records._index import INDEX as INDEX
from batchscale.records._index import DamagedError as DamagedError
from batchscale.records._store import CONFIRMED as CONFIRMED
from batchscale.records._store import MEASURED as MEASURED
from batchscale.records._store import REFINED as REFINED
from batchscale.records.environment import CONDITIONS as CONDITIONS
from batchscale.records.environment import conditions as conditions
from batchscale.records.environment import conditions_from_json as conditions_from_json
from batchscale.records.environment import provenance as provenance
from batchscale.records.environment import runs_under as runs_under
from batchscale.records.folder import Contents as Contents
from batchscale.records.folder import StudyFolder as StudyFolder
from batchscale.records.folder import load_tables as load_tables
from batchscale.records.tables import MEASUREMENT_INDEX as MEASUREMENT_INDEX
from batchscale.records.tables import TRIAL_COLUMNS as TRIAL_COLUMNS
from batchscale.records.tables import TRIAL_INDEX as TRIAL_INDEX
from batchscale.records.tables import WHOLE_BUDGETS as WHOLE_BUDGETS
from batchscale.records.tables import Origin as Origin
from batchscale.records.tables import Status as Status
from batchscale.records.tables import StopReason as StopReason
from batchscale.records.tables import check_index as check_index
from batchscale.records.tables import measurement_table as measurement_table
from batchscale.records.tables import trial_table as trial_table
