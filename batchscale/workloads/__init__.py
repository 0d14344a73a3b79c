"""Workloads: what is trained and how it is judged; named ones, and one's own."""

from batchscale.workloads.registry import get as get
from batchscale.workloads.registry import table as table
from batchscale.workloads.workload import Splits as Splits
from batchscale.workloads.workload import Workload as Workload
