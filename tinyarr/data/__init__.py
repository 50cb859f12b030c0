"""Data for training: batches of token shards, and of any data set by items. Floor 5."""

import functools as _functools

from ..other_names import DATA as _OTHER_NAMES
from ..other_names import explain_class as _explain_class
from ..other_names import missing as _missing
from .loader import DataLoader, Dataset, TensorDataset, collate
from .tokens import FORMATS, Batches, read_shards, write_shard

_explain_class(DataLoader)
__getattr__ = _functools.partial(_missing, __name__, _OTHER_NAMES)

__all__ = ["FORMATS", "Batches", "DataLoader", "Dataset", "TensorDataset", "collate", "read_shards", "write_shard"]
