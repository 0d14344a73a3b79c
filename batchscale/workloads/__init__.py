"""Workloads: what is trained and how it is judged; named ones, and one's own."""

from batchscale.workloads.catalogue import table as table
from batchscale.workloads.paper import Protocol as Protocol
from batchscale.workloads.paper import protocol as protocol
from batchscale.workloads.paper import protocols as protocols
from batchscale.workloads.registry import get as get
from batchscale.workloads.workload import Splits as Splits
from batchscale.workloads.workload import Workload as Workload
