"""Distributed: the same script on many processes, which compute together over MPI or NCCL."""

from .group import Group, Mesh, init, local_rank, rank, world  # isort: skip  # before what is built on it
from ..ops.collective import all_gather, all_reduce, broadcast, reduce, reduce_scatter
from .data_parallel import Alone, DataParallel, Part, average_gradients, replicate
from .zero import Zero, share_out
