"""Data sets in named splits, as NumPy arrays on the host or streamed; nothing here needs JAX.

Splits are a dictionary of dictionaries of arrays with the examples along axis 0:
`{"train": {"image": ..., "label": ...}, "validation": {...}, "test": {...}}`.
"""

from batchscale.datasets.idx import from_idx as from_idx
from batchscale.datasets.large import prepare as prepare
from batchscale.datasets.large import sources as sources
from batchscale.datasets.named import load as load
from batchscale.datasets.named import names as names
from batchscale.datasets.named import title as title
from batchscale.datasets.splits import Splits as Splits
from batchscale.datasets.splits import check_labels as check_labels
from batchscale.datasets.splits import fingerprint as fingerprint
from batchscale.datasets.splits import from_arrays as from_arrays
from batchscale.datasets.splits import from_npz as from_npz
from batchscale.datasets.splits import not_finite as not_finite
from batchscale.datasets.splits import to_npz as to_npz
from batchscale.datasets.stream import Stream as Stream
from batchscale.datasets.stream import is_streamed as is_streamed
from batchscale.datasets.stream import take as take
