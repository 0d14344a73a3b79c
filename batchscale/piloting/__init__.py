"""Pilots: short runs that find what a study has to be told, and what it will cost."""

from batchscale.piloting.running import Pilot as Pilot
from batchscale.piloting.running import pilot as pilot
