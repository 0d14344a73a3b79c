"""The layout in which Shallue et al. (2019) published their measurements: read, and written.

dataset/model/optimizer/batch_size/study.json
dataset/model/optimizer/batch_size/<trial>/metadata.json
dataset/model/optimizer/batch_size/<trial>/measurements.csv

The README of google-research/batch_science describes it.
"""

from batchscale.archive.reading import Contents as Contents
from batchscale.archive.reading import read as read
from batchscale.archive.writing import write as write
