/* The head of a kernel that launches may join, its block and its grid. In a joined launch, member.cuh takes its place. */
#define KERNEL(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)
#define BLOCK blockIdx
#define GRID gridDim
