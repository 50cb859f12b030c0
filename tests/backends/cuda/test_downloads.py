"""Which copy on the host is still what the tensor holds: a matter of books, which needs no GPU."""

import gc

import tinyarr
from tinyarr.backends.cuda.device.downloads import Download, Downloads
from tinyarr.tensor import result_tensor


def begun(copies, x):
    copy = Download(None, x.numpy())
    copies.keep(x.array, copy)
    return copy


def test_a_copy_is_found_by_what_the_tensor_shows_until_it_is_written():
    copies, x = Downloads(), tinyarr.zeros((3, 4))
    whole, column = begun(copies, x), begun(copies, x[:, 1])
    assert copies.find(x.array) is copies.find(result_tensor(x.array).array) is copies.find(x[:].array) is whole
    assert copies.find(x[:, 1].array) is column
    assert copies.find(x.T.array) is copies.find(x[:, 2].array) is copies.find(tinyarr.zeros((3, 4)).array) is None
    x[0, 0] = 1.0
    assert copies.find(x.array) is copies.find(x[:, 1].array) is None
    again = begun(copies, x)
    assert copies.find(x.array) is again and copies.find(x[:, 1].array) is None


def test_no_copy_is_kept_of_what_other_libraries_may_write():
    copies, x = Downloads(), tinyarr.zeros((3, 4))
    assert copies.wants(x.array)
    begun(copies, x)
    assert not copies.wants(x.array)
    copies.share(x.array.storage)
    assert copies.find(x.array) is None and not copies.wants(x.array)


def test_what_was_written_or_freed_is_kept_no_longer():
    copies, x = Downloads(), tinyarr.zeros((3, 4))
    for i in range(5):
        x.assign(i)
        begun(copies, x)
    assert [len(found) for _, found in copies._copies.values()] == [1]
    del x
    gc.collect()
    assert not copies._copies
