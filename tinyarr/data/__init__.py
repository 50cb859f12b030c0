"""Data for training: batches of token shards, and of any data set by items. Floor 5."""

from .loader import DataLoader, Dataset, TensorDataset, collate
from .tokens import FORMATS, Batches, read_shards, write_shard

__all__ = ["FORMATS", "Batches", "DataLoader", "Dataset", "TensorDataset", "collate", "read_shards", "write_shard"]
