"""Every launcher's variables say which rank this is; those that can't be understood are errors, and never rank 0."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyarr.distributed.runtime import environment
from tinyarr.distributed.runtime.environment import RankPlace, find, first_host
from tinyarr.errors import ArgumentError

TORCHRUN = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
MPICH = "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"
OPEN_MPI = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
SLURM = "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"
MASTER = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
STEP = {"SLURM_STEP_NODELIST": "node[01-02]", "SLURM_JOB_ID": "123", "SLURM_STEP_ID": "4"}
LAUNCHERS = [(TORCHRUN, MASTER, "tcp"), (MPICH, {}, "mpi"), (OPEN_MPI, {}, "mpi"), (SLURM, STEP, "tcp")]

places = st.integers(2, 2000).flatmap(
    lambda size: st.tuples(
        st.integers(0, size - 1), st.just(size), st.integers(0, size - 1), st.integers(1, size)
    )
)


def variables(names, place, other):
    return dict(zip(names, map(str, place))) | other


@given(st.sampled_from(LAUNCHERS), places)
def test_each_launcher_tells_the_place(launcher, place):
    names, other, how = launcher
    found = find(variables(names, place, other))
    assert found[:5] == (*place, how)
    assert bool(found.address) == (how == "tcp")


@given(st.sampled_from(LAUNCHERS), places, st.data())
def test_a_variable_that_is_missing_or_no_number_is_named(launcher, place, data):
    names, other, _ = launcher
    # Without its number of tasks Slurm has started a batch script, and is not asked at all.
    needed = [*names[:3], *other] if names is not SLURM else [names[0], names[2], *other]
    name = data.draw(st.sampled_from(needed))
    given_ones = variables(names, place, other)
    if data.draw(st.booleans()) or name in ("MASTER_ADDR", "SLURM_STEP_NODELIST"):
        del given_ones[name]
    else:
        given_ones[name] = data.draw(st.sampled_from(["", "-1", "one", "1.5", "²", " 1", "9" * 5000]))
    with pytest.raises(ArgumentError, match=name):
        find(given_ones)


@given(st.sampled_from(LAUNCHERS), st.integers(2, 9))
def test_a_rank_beyond_the_size_is_an_error(launcher, size):
    names, other, _ = launcher
    with pytest.raises(ArgumentError, match=f"{names[0]} is '{size}': it must be a number from 0 to {size - 1}"):
        find(variables(names, (size, size, 0, 1), other))


def test_a_process_that_nobody_launched_is_alone():
    assert find({}) == RankPlace(0, 1, 0, 1, "none", "")


@pytest.mark.parametrize("names, other, how", LAUNCHERS)
def test_a_launcher_of_one_rank_leaves_it_alone(names, other, how):
    assert find(variables(names, (0, 1, 0, 1), {})) == RankPlace(0, 1, 0, 1, "none", "")


@pytest.mark.parametrize("names, other", [(TORCHRUN, MASTER), (MPICH, {}), (OPEN_MPI, {})])
def test_within_a_step_of_slurm_the_inner_launcher_counts(names, other):
    step = variables(SLURM, (1, 2, 0, 1), STEP)
    assert find(step | variables(names, (5, 8, 1, 4), other))[:4] == (5, 8, 1, 4)


def test_srun_starts_programs_of_mpich_without_a_local_rank():
    step = variables(SLURM, (3, 4, 1, 2), STEP)
    found = find(step | {"PMI_RANK": "3", "PMI_SIZE": "4"})
    assert (found.rank, found.size, found.local_rank, found.how) == (3, 4, 1, "mpi")
    with pytest.raises(ArgumentError, match="MPI_LOCALRANKID is not set"):  # srun's numbers are another process's
        find(step | {"PMI_RANK": "2", "PMI_SIZE": "4"})


def test_a_batch_script_of_slurm_is_one_process():
    batch = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "5"}
    assert find(batch).size == 1


def test_launchers_that_contradict_one_another_are_an_error():
    both = variables(TORCHRUN, (0, 1, 0, 1), MASTER) | variables(MPICH, (1, 4, 1, 4), {})
    with pytest.raises(ArgumentError, match="RANK is '0', but PMI_RANK is '1': unset those of torchrun or of MPICH"):
        find(both)
    assert find(variables(TORCHRUN, (1, 4, 1, 4), MASTER) | variables(MPICH, (1, 4, 1, 4), {})).how == "tcp"


@pytest.mark.parametrize(
    "chosen, how, address",
    [
        ("mpi", "mpi", ""),
        ("tcp://host:80", "tcp", "host:80"),
        ("tcp://[::1]:80", "tcp", "::1:80"),
        ("folder:/a b/c", "folder", "/a b/c"),
    ],
)
@pytest.mark.parametrize("names, other, _", LAUNCHERS)
def test_the_user_chooses_how_the_ranks_of_any_launcher_meet(names, other, _, chosen, how, address):
    found = find(variables(names, (1, 2, 1, 2), {"TINYARR_RENDEZVOUS": chosen}))
    assert found == RankPlace(1, 2, 1, 2, how, address)


@pytest.mark.parametrize(
    "chosen", ["", "MPI", "tcp://host", "tcp://host:x", "tcp://:80", "tcp://h:1/a", "folder:", "/a", "tcp://[::1:80",
               "tcp://h:0", "tcp://h:65536", "tcp://h:1?a", "tcp://h:1#a", "tcp://u@h:1", "tcp://a b:1", "tcp://[h]:1"]
)
def test_a_choice_that_is_none_is_an_error(chosen):
    with pytest.raises(ArgumentError, match=r"TINYARR_RENDEZVOUS is .*give mpi, tcp://host:port, or folder:/path"):
        find(variables(MPICH, (1, 2, 1, 2), {"TINYARR_RENDEZVOUS": chosen}))


def test_a_choice_without_a_rank_is_an_error():
    with pytest.raises(ArgumentError, match="no variable says which rank"):
        find({"TINYARR_RENDEZVOUS": "mpi"})


def test_where_torchrun_listens_itself_another_port_is_taken():
    torchrun = variables(TORCHRUN, (0, 2, 0, 2), MASTER)
    assert find(torchrun).address == "node1:29500"
    assert find(torchrun | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).address == "node1:19500"


@given(st.integers(0, 10**9), st.integers(0, 1000))
def test_steps_of_slurm_meet_at_the_first_host_and_ports_of_their_own(job, step):
    def address(step):
        numbers = {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}
        return find(variables(SLURM, (0, 2, 0, 1), STEP | numbers)).address

    host, port = address(step).split(":")
    assert host == "node01" and 1024 < int(port) < 32768
    assert address(step + 1) != address(step)


@pytest.mark.parametrize("text, told", [("4(x2)", 4), ("3", 3), ("2,1", None), ("2(x3),1", None)])
def test_how_many_ranks_are_here_is_known_where_slurm_has_as_many_on_every_node(text, told):
    assert find(variables(SLURM, (0, 8, 0, text), STEP)).local_size == told


numbers = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 3)), min_size=1, max_size=3)


groups = st.tuples(st.sampled_from(["node", "gpu-a", "x1-"]), numbers, st.sampled_from(["", "-ib"]))


@given(st.lists(groups, min_size=1))
def test_the_first_host_of_a_list_is_found(parts):
    texts, hosts = [], []
    for prefix, ranges, suffix in parts:
        inner = ",".join(f"{first:03}" + (f"-{first + more:03}" if more else "") for first, more in ranges)
        texts.append(f"{prefix}[{inner}]{suffix}")
        hosts += [f"{prefix}{i:03}{suffix}" for first, more in ranges for i in range(first, first + more + 1)]
    assert first_host(",".join(texts)) == hosts[0]
    assert first_host(",".join(hosts)) == hosts[0]


@pytest.mark.parametrize("names, other, _", LAUNCHERS[:3])
@pytest.mark.parametrize("text", ["", "0", "3", "x", "9" * 5000])
def test_a_number_of_ranks_here_that_cannot_be_is_an_error(names, other, _, text):
    with pytest.raises(ArgumentError, match=f"{names[3]} is '{text}': it must be a number from 1 to 2"):
        find(variables(names, (0, 2, 0, text), other))


@pytest.mark.parametrize("names, other, _", LAUNCHERS)
def test_more_ranks_than_there_can_be_are_an_error(names, other, _):
    with pytest.raises(ArgumentError, match=f"{names[1]} is '1048577': it must be a number from 1 to 1048576"):
        find(variables(names, (0, 1048577, 0, 1), other))


@pytest.mark.parametrize("hosts", ["", ",", "[", ",node1"])
def test_a_list_of_hosts_that_begins_with_none_is_an_error(hosts):
    with pytest.raises(ArgumentError, match="SLURM_STEP_NODELIST names no host"):
        find(variables(SLURM, (0, 2, 0, 1), STEP | {"SLURM_STEP_NODELIST": hosts}))


@pytest.mark.parametrize("text", ["x", "4(x", "4()", "(x2)", "9" * 5000, "٣"])
def test_what_slurm_says_of_its_nodes_may_be_anything(text):
    assert find(variables(SLURM, (0, 8, 0, text), STEP)).local_size is None


def test_the_timeout_is_the_users_or_the_default():
    assert environment.timeout(60.0, {}) == 60.0
    assert environment.timeout(60.0, {"TINYARR_TIMEOUT": "2.5"}) == 2.5
    assert environment.timeout(60.0, {"TINYARR_TIMEOUT": "2.5"}, given=3) == 3.0
    for text in ("", "0", "-1", "nan", "inf", "1e300", "soon"):
        with pytest.raises(ArgumentError, match=f"TINYARR_TIMEOUT is '{text}'"):
            environment.timeout(60.0, {"TINYARR_TIMEOUT": text})
    for seconds in (0, -1.0, float("nan"), 1e300, 10**400, "soon", []):
        with pytest.raises(ArgumentError, match="init: timeout is "):
            environment.timeout(60.0, {}, given=seconds)


def test_the_secret_is_what_the_user_has_set():
    assert environment.secret({}) == "" and environment.secret({"TINYARR_SECRET": "s"}) == "s"
