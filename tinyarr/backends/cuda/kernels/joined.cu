/* Many launches of one kernel as one: the blocks of MEMBERS grids, one grid behind the other.

   MEMBER_KERNEL is the kernel. FIELDS are its arguments, as members of a struct that each begin at a multiple of 8
   bytes; ARGUMENTS passes those of `member`. batch_launches.py lays the table out. But for its linkage this is C too, so that a
   test can run it without a GPU. */

typedef struct {
    int64_t x, y, z; /* the size of its grid */
    FIELDS
} Member;

typedef struct {
    int64_t first[MEMBERS]; /* block of each member */
    Member members[MEMBERS];
} Table;

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) JOINED(const __grid_constant__ Table table)
{
    int low = 0, high = MEMBERS - 1;
    while (low < high) { /* the last member that begins with this block or before */
        int middle = (low + high + 1) / 2;
        if (table.first[middle] <= blockIdx.x)
            low = middle;
        else
            high = middle - 1;
    }
    const Member *member = &table.members[low];
    uint32_t at = blockIdx.x - (uint32_t)table.first[low];
    dim3 grid = {(uint32_t)member->x, (uint32_t)member->y, (uint32_t)member->z};
    uint3 block = {at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y};
    MEMBER_KERNEL(block, grid, ARGUMENTS);
}
