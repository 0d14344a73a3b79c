"""Models of any framework, as pure functions of parameters, state, inputs and a key."""

from batchscale.workloads.networks.making import network as network
from batchscale.workloads.networks.network import Network as Network
