"""One self-contained page of what was found, to be read anywhere and sent to anyone."""

from batchscale.report.writing import write as write
