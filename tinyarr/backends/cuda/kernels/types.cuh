/* Element types, 128-bit loads and stores, and sums over a warp. Sources are compiled without any headers. */

typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
#define INT64_MIN (-9223372036854775807ll - 1)
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;

#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

/* What a value is computed with: half types in float, all others in their own type. */
__device__ __forceinline__ float widen(bfloat16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
__device__ __forceinline__ float widen(float16 x)
{
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}
template <typename T> __device__ __forceinline__ T widen(T x) { return x; }

/* The value rounded to nearest even for storage. */
template <typename T> struct Narrow {
    template <typename A> static __device__ __forceinline__ T from(A x) { return (T)x; }
};
template <> struct Narrow<bfloat16> {
    static __device__ __forceinline__ bfloat16 from(float x)
    {
        bfloat16 half;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half.bits) : "f"(x));
        return half;
    }
};
template <> struct Narrow<float16> {
    static __device__ __forceinline__ float16 from(float x)
    {
        float16 half;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(x));
        return half;
    }
};
template <typename T, typename A> __device__ __forceinline__ T narrow(A x) { return Narrow<T>::from(x); }

/* N neighbours, loaded and stored at once: in one instruction where they fill 16 bytes. */
template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack { T at[N]; };

template <int N, typename T> __device__ __forceinline__ Pack<T, N> load(const T *from)
{
    return *reinterpret_cast<const Pack<T, N> *>(from);
}

template <int N, typename T> __device__ __forceinline__ void store(T *to, const Pack<T, N> &pack)
{
    *reinterpret_cast<Pack<T, N> *>(to) = pack;
}

/* The first `count` of N, one by one where they are fewer. */
template <int N, typename T> __device__ __forceinline__ Pack<T, N> load(const T *from, int64_t count)
{
    if (count >= N)
        return load<N>(from);
    Pack<T, N> pack;
#pragma unroll
    for (int k = 0; k < N; k++)
        pack.at[k] = from[k < count ? k : 0];
    return pack;
}

template <int N, typename T> __device__ __forceinline__ void store(T *to, const Pack<T, N> &pack, int64_t count)
{
    if (count >= N)
        return store(to, pack);
#pragma unroll
    for (int k = 0; k < N; k++)
        if (k < count)
            to[k] = pack.at[k];
}

/* N neighbours as elements of another type of the same size. */
template <typename To, int N, typename From> __device__ __forceinline__ Pack<To, N> &as(From *first)
{
    return *reinterpret_cast<Pack<To, N> *>(first);
}

/* Elements from position `at` on, taken from an operand and put into one; Aligned: at addresses that a pack can have.
   A struct with the same two functions can stand in the pointer's place (prologues.py). */
template <int N, bool Aligned, typename T> __device__ __forceinline__ Pack<T, N> fetch(const T *from, int64_t at)
{
    if (Aligned)
        return load<N>(from + at);
    Pack<T, N> pack;
#pragma unroll
    for (int k = 0; k < N; k++)
        pack.at[k] = from[at + k];
    return pack;
}

template <int N, bool Aligned, typename T> __device__ __forceinline__ void put(T *to, int64_t at, const Pack<T, N> &pack)
{
    if (Aligned)
        return store(to + at, pack);
#pragma unroll
    for (int k = 0; k < N; k++)
        to[at + k] = pack.at[k];
}

/* The larger and the smaller, NaN if either is. */
template <typename A> __device__ __forceinline__ A maximum(A a, A b) { return a != a || a > b ? a : b; }
template <typename A> __device__ __forceinline__ A minimum(A a, A b) { return a != a || a < b ? a : b; }
template <> __device__ __forceinline__ float maximum(float a, float b)
{
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
    return a;
}
template <> __device__ __forceinline__ float minimum(float a, float b)
{
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
    return a;
}

/* Over the 32 lanes of a warp, in a fixed order; every lane gets the result. */
template <typename A> __device__ __forceinline__ A warp_sum(A x)
{
#pragma unroll
    for (int distance = 16; distance; distance /= 2)
        x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

template <typename A> __device__ __forceinline__ A warp_max(A x)
{
#pragma unroll
    for (int distance = 16; distance; distance /= 2) {
        A y = __shfl_xor_sync(~0u, x, distance);
        x = x > y ? x : y;
    }
    return x;
}
