/* The 8-bit formats, converted by scalar.h. */

struct float8_e4m3fn { uint8_t bits; };
struct float8_e5m2 { uint8_t bits; };

__device__ __forceinline__ float widen(float8_e4m3fn x) { return float32_from_float8_e4m3fn(x.bits); }
__device__ __forceinline__ float widen(float8_e5m2 x) { return float32_from_float8_e5m2(x.bits); }

template <> struct Narrow<float8_e4m3fn> {
    static __device__ __forceinline__ float8_e4m3fn from(float x) { return {float8_e4m3fn_from_float32(x)}; }
};
template <> struct Narrow<float8_e5m2> {
    static __device__ __forceinline__ float8_e5m2 from(float x) { return {float8_e5m2_from_float32(x)}; }
};
