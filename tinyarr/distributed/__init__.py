"""Distributed: the same script on many processes, which compute together over MPI or NCCL. Floor 4."""

from ..groups import Group, world
from ..ops.collective import all_gather, all_reduce, broadcast, reduce, reduce_scatter
from .data_parallel import DataParallel, OneRank, Part, average_gradients, replicate
from .meeting import Mesh, init, local_rank, rank
from .zero import Zero, share_out
