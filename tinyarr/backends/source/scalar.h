/* The operations of the scalar language that C lacks or leaves undefined for some input.

   In C exp, log, tanh and erf are ours because a compiler can't vectorize a call into libm. They hold 2 ulp everywhere,
   take and give subnormal numbers, and have no branch. Their coefficients are those of the Taylor series, which a reader
   can check, on ranges so short that the first omitted term is below half an ulp; only erf needs a fitted polynomial.
   Signed integers wrap (-fwrapv), no multiply-add is contracted (-ffp-contract=off, -fmad=false). The same text is C
   and CUDA C++. */

/* BITCAST: the bits of an expression read as another type of the same size. */
#ifdef __CUDACC__
#define FUNCTION static __device__ __forceinline__
template <typename From, typename To> FUNCTION To bitcast(From x) { return *reinterpret_cast<To *>(&x); }
#define BITCAST(from, to, x) bitcast<from, to>(x)
#else
#include <math.h>
#include <stdint.h>
#define FUNCTION static inline
#define BITCAST(from, to, x) (((union { from source; to target; }){(x)}).target)
#endif

FUNCTION uint32_t bits_of_float32(float x) { return BITCAST(float, uint32_t, x); }
FUNCTION uint64_t bits_of_float64(double x) { return BITCAST(double, uint64_t, x); }
FUNCTION float float32_of_bits(uint32_t bits) { return BITCAST(uint32_t, float, bits); }
FUNCTION double float64_of_bits(uint64_t bits) { return BITCAST(uint64_t, double, bits); }
FUNCTION uint8_t signbit_float32(float x) { return bits_of_float32(x) >> 31; }
FUNCTION uint8_t signbit_float64(double x) { return bits_of_float64(x) >> 63; }

#ifdef __CUDACC__
/* CUDA's own hold 2 ulp as well, and use the fused multiply-adds that the code below goes without. */
#define exp_float32 expf
#define exp_float64 exp
#define tanh_float32 tanhf
#define tanh_float64 tanh
#define erf_float32 erff
#define erf_float64 erf
#define log_float32 logf
#define log_float64 log
#else
/* exp, tanh and erf begin with e^x = 2^n (1 + p), where n is x / log 2 rounded. Adding 1.5 * 2^(mantissa bits) rounds
   to a whole number and leaves it in the low bits of the sum. log 2 is subtracted in two parts, the first with so few
   bits that n times it is exact; what rounding cuts off r is added at the end. NaN gives p = NaN and some n. */
typedef struct { float p; int32_t n; } exponential_float32;
typedef struct { double p; int64_t n; } exponential_float64;

FUNCTION exponential_float32 reduced_exp_float32(float x)
{
    const float whole = 0x1.8p23f;
    float shifted = x * 0x1.715476p+0f + whole; /* 1 / log 2 */
    float k = shifted - whole;
    float high = x - k * 0x1.62e4p-1f, low = k * 0x1.7f7d1cp-20f;
    float r = high - low, rest = high - r - low;
    float q = 1 / 2.0f + r * (1 / 6.0f + r * (1 / 24.0f + r * (1 / 120.0f + r * (1 / 720.0f + r * (1 / 5040.0f)))));
    exponential_float32 e = {r + (r * r * q + rest), (int32_t)(bits_of_float32(shifted) - bits_of_float32(whole))};
    return e;
}

FUNCTION exponential_float64 reduced_exp_float64(double x)
{
    const double whole = 0x1.8p52;
    double shifted = x * 0x1.71547652b82fep+0 + whole; /* 1 / log 2 */
    double k = shifted - whole;
    double high = x - k * 0x1.62e42fefa38p-1, low = k * 0x1.ef35793c7673p-45;
    double r = high - low, rest = high - r - low;
    double q = 1 / 6227020800.0;
    q = 1 / 479001600.0 + r * q;
    q = 1 / 39916800.0 + r * q;
    q = 1 / 3628800.0 + r * q;
    q = 1 / 362880.0 + r * q;
    q = 1 / 40320.0 + r * q;
    q = 1 / 5040.0 + r * q;
    q = 1 / 720.0 + r * q;
    q = 1 / 120.0 + r * q;
    q = 1 / 24.0 + r * q;
    q = 1 / 6.0 + r * q;
    q = 1 / 2.0 + r * q;
    exponential_float64 e = {r + (r * r * q + rest), (int64_t)(bits_of_float64(shifted) - bits_of_float64(whole))};
    return e;
}

FUNCTION float power_of_2_float32(int32_t n) { return float32_of_bits((uint32_t)(n + 127) << 23); }
FUNCTION double power_of_2_float64(int64_t n) { return float64_of_bits((uint64_t)(n + 1023) << 52); }

/* Two factors reach the subnormal numbers, 0 and infinity with one rounding. */
FUNCTION float exp_float32(float x)
{
    exponential_float32 e = reduced_exp_float32(x < -110 ? -110 : x > 90 ? 90 : x);
    int32_t half = e.n >> 1;
    return (1 + e.p) * power_of_2_float32(half) * power_of_2_float32(e.n - half);
}

FUNCTION double exp_float64(double x)
{
    exponential_float64 e = reduced_exp_float64(x < -750 ? -750 : x > 710 ? 710 : x);
    int64_t half = e.n >> 1;
    return (1 + e.p) * power_of_2_float64(half) * power_of_2_float64(e.n - half);
}

/* e^x - 1, for x of moderate size. */
FUNCTION float expm1_of_moderate_float32(float x)
{
    exponential_float32 e = reduced_exp_float32(x);
    float scale = power_of_2_float32(e.n);
    return scale * e.p + (scale - 1);
}

FUNCTION double expm1_of_moderate_float64(double x)
{
    exponential_float64 e = reduced_exp_float64(x);
    double scale = power_of_2_float64(e.n);
    return scale * e.p + (scale - 1);
}

/* With E = e^2|x| - 1: tanh |x| = E / (E + 2), written as E/2 - E/2 E / (E + 2) for small x and as 1 - 2 / (E + 2) for
   large, where the error of the quotient counts little. */
FUNCTION float tanh_float32(float x)
{
    float size = fabsf(x), e = expm1_of_moderate_float32(size > 10 ? 20 : 2 * size), half = e / 2;
    float quotient = (size < 0.55f ? e : 2) / (e + 2);
    return copysignf(size < 0.55f ? half - half * quotient : 1 - quotient, x);
}

FUNCTION double tanh_float64(double x)
{
    double size = fabs(x), e = expm1_of_moderate_float64(size > 20 ? 40 : 2 * size), half = e / 2;
    double quotient = (size < 0.55 ? e : 2) / (e + 2);
    return copysign(size < 0.55 ? half - half * quotient : 1 - quotient, x);
}

/* erf |x| = 1 - e^-(x + x q(x)), where the polynomial q was fitted to -log(erfc(x)) / x - 1 by Remez's algorithm, so
   that the largest relative error of erf is smallest: 2^-27.9 and 2^-56.0. Past the ranges' ends erf rounds to 1. */
FUNCTION float erf_float32(float x)
{
    float t = fabsf(x) > 4 ? 4 : fabsf(x);
    float q = -9.255904748e-6f;
    q = 1.176380056e-4f + t * q;
    q = -6.328250765e-4f + t * q;
    q = 1.667005769e-3f + t * q;
    q = -1.603743285e-4f + t * q;
    q = -1.915307555e-2f + t * q;
    q = 1.027778335e-1f + t * q;
    q = 6.366193817e-1f + t * q;
    q = 1.283791716e-1f + t * q;
    return copysignf(expm1_of_moderate_float32(-(t + t * q)), x);
}

FUNCTION double erf_float64(double x)
{
    double t = fabs(x) > 5.93 ? 5.93 : fabs(x);
    double q = -9.74356736276880747e-17;
    q = 5.43089167922742235e-15 + t * q;
    q = -1.41954566955198844e-13 + t * q;
    q = 2.31283829848917254e-12 + t * q;
    q = -2.63234430622294501e-11 + t * q;
    q = 2.22113406918151051e-10 + t * q;
    q = -1.43705174415843982e-9 + t * q;
    q = 7.25331848555892912e-9 + t * q;
    q = -2.86272384953331236e-8 + t * q;
    q = 8.66860824461905431e-8 + t * q;
    q = -1.88104897940172777e-7 + t * q;
    q = 2.20314347297338709e-7 + t * q;
    q = 2.15472486915256407e-7 + t * q;
    q = -1.59947515828104149e-6 + t * q;
    q = 2.70099760894496952e-6 + t * q;
    q = 3.50813404266974436e-6 + t * q;
    q = -2.97837194374042681e-5 + t * q;
    q = 6.45191830589720371e-5 + t * q;
    q = 2.5869131960821838e-5 + t * q;
    q = -5.90123138528224555e-4 + t * q;
    q = 1.69620595130468986e-3 + t * q;
    q = -2.09194642769172662e-4 + t * q;
    q = -1.91284470088771602e-2 + t * q;
    q = 1.02772603301935281e-1 + t * q;
    q = 6.36619772367581389e-1 + t * q;
    q = 1.28379167095512574e-1 + t * q;
    return copysign(expm1_of_moderate_float64(-(t + t * q)), x);
}

/* log: x = 2^n m with m in [sqrt(1/2), sqrt 2), found by subtracting the bits of sqrt(1/2). With f = m - 1 and
   s = f / (2 + f): log m = 2 artanh s = f - s (f - R), where s R is the series of 2 artanh s past its first term. */
FUNCTION float log_float32(float x)
{
    float normal = x < 0x1p-126f ? x * 0x1p23f : x;
    uint32_t offset = bits_of_float32(normal) - 0x3f3504f3;
    float n = (float)((int32_t)offset >> 23) - (x < 0x1p-126f ? 23.0f : 0.0f);
    float f = float32_of_bits((offset & 0x7fffff) + 0x3f3504f3) - 1;
    float s = f / (2 + f), z = s * s;
    float series = z * (2 / 3.0f + z * (2 / 5.0f + z * (2 / 7.0f + z * (2 / 9.0f))));
    float result = n * 0x1.62e4p-1f + ((f - s * (f - series)) + n * 0x1.7f7d1cp-20f);
    return x > 0 ? (x < INFINITY ? result : x) : x == 0 ? -INFINITY : NAN;
}

FUNCTION double log_float64(double x)
{
    double normal = x < 0x1p-1022 ? x * 0x1p52 : x;
    uint64_t offset = bits_of_float64(normal) - 0x3fe6a09e667f3bcd;
    double n = (double)((int64_t)offset >> 52) - (x < 0x1p-1022 ? 52.0 : 0.0);
    double f = float64_of_bits((offset & 0xfffffffffffff) + 0x3fe6a09e667f3bcd) - 1;
    double s = f / (2 + f), z = s * s;
    double series = 2 / 21.0;
    series = 2 / 19.0 + z * series;
    series = 2 / 17.0 + z * series;
    series = 2 / 15.0 + z * series;
    series = 2 / 13.0 + z * series;
    series = 2 / 11.0 + z * series;
    series = 2 / 9.0 + z * series;
    series = 2 / 7.0 + z * series;
    series = 2 / 5.0 + z * series;
    series = 2 / 3.0 + z * series;
    double result = n * 0x1.62e42fefa38p-1 + ((f - s * (f - z * series)) + n * 0x1.ef35793c7673p-45);
    return x > 0 ? (x < INFINITY ? result : x) : x == 0 ? -INFINITY : NAN;
}
#endif

/* Floating numbers. `f` is the suffix of libm's functions. fmod is exact and has the sign of x.
   Conversions to integers truncate, as NumPy's on x86-64 do: by way of int32, for uint32 and int64 by way of int64,
   where NaN and what does not fit become the lowest number. uint64 takes its upper half by way of int64 too.
   Of 0.0 and -0.0, which are equal, the second is the maximum and the minimum; a power of 0.5 is the square root. */
#define FLOATING(name, type, f)                                                                                        \
    FUNCTION type maximum_##name(type x, type y) { return (x > y) | (x != x) ? x : y; }                                \
    FUNCTION type minimum_##name(type x, type y) { return (x < y) | (x != x) ? x : y; }                                \
    FUNCTION type power_##name(type x, type y) { return y == (type)0.5 ? sqrt##f(x) : pow##f(x, y); }                  \
    FUNCTION type sign_##name(type x) { return x != x ? x : (type)((x > 0) - (x < 0)); }                               \
                                                                                                                       \
    FUNCTION type remainder_##name(type x, type y)                                                                     \
    {                                                                                                                  \
        type r = fmod##f(x, y);                                                                                        \
        return r == 0 ? copysign##f((type)0, y) : (r < 0) != (y < 0) ? r + y : r;                                      \
    }                                                                                                                  \
                                                                                                                       \
    FUNCTION type floor_divide_##name(type x, type y)                                                                  \
    {                                                                                                                  \
        type r = fmod##f(x, y);                                                                                        \
        type quotient = (x - r) / y - ((r != 0) & ((r < 0) != (y < 0))); /* whole but for its rounding */              \
        type whole = floor##f(quotient);                                                                               \
        whole = quotient - whole > (type)0.5 ? whole + 1 : whole;                                                      \
        return y == 0 ? x / y : quotient == 0 ? copysign##f((type)0, x / y) : whole;                                   \
    }                                                                                                                  \
                                                                                                                       \
    FUNCTION int32_t int32_from_##name(type x)                                                                         \
    {                                                                                                                  \
        const type end = 0x1p31;                                                                                       \
        return (int32_t)((x >= -end) & (x < end) ? x : -end);                                                          \
    }                                                                                                                  \
                                                                                                                       \
    FUNCTION int64_t int64_from_##name(type x)                                                                         \
    {                                                                                                                  \
        const type end = 0x1p63;                                                                                       \
        return (int64_t)((x >= -end) & (x < end) ? x : -end);                                                          \
    }                                                                                                                  \
                                                                                                                       \
    FUNCTION uint64_t uint64_from_##name(type x)                                                                       \
    {                                                                                                                  \
        const type upper = x >= (type)0x1p63 ? 0x1p63 : 0;                                                             \
        return (uint64_t)int64_from_##name(x - upper) ^ (uint64_t)(upper > 0) << 63;                                   \
    }                                                                                                                  \
                                                                                                                       \
    FUNCTION int8_t int8_from_##name(type x) { return (int8_t)int32_from_##name(x); }                                  \
    FUNCTION int16_t int16_from_##name(type x) { return (int16_t)int32_from_##name(x); }                               \
    FUNCTION uint8_t uint8_from_##name(type x) { return (uint8_t)int32_from_##name(x); }                               \
    FUNCTION uint16_t uint16_from_##name(type x) { return (uint16_t)int32_from_##name(x); }                            \
    FUNCTION uint32_t uint32_from_##name(type x) { return (uint32_t)int64_from_##name(x); }

FLOATING(float32, float, f)
FLOATING(float64, double, )

/* Integers. Division by zero gives 0; the lowest number divided by -1 wraps; a shift by the width or more, or by a
   negative number, moves every bit out; a negative power is 1 / x^|y| rounded toward zero, and 0 for x = 0. */
#define INTEGER(name, type, unsigned_type)                                                                             \
    FUNCTION type floor_divide_##name(type x, type y)                                                                  \
    {                                                                                                                  \
        if (y == 0)                                                                                                    \
            return 0;                                                                                                  \
        if ((type)-1 < 0 && y == (type)-1)                                                                             \
            return -x;                                                                                                 \
        return x / y - ((x % y != 0) & ((x < 0) != (y < 0)));                                                          \
    }                                                                                                                  \
                                                                                                                       \
    FUNCTION type remainder_##name(type x, type y)                                                                     \
    {                                                                                                                  \
        if (y == 0 || ((type)-1 < 0 && y == (type)-1))                                                                 \
            return 0;                                                                                                  \
        type r = x % y;                                                                                                \
        return (r != 0) & ((r < 0) != (y < 0)) ? r + y : r;                                                            \
    }                                                                                                                  \
                                                                                                                       \
    FUNCTION type bitwise_left_shift_##name(type x, type y)                                                            \
    {                                                                                                                  \
        return (unsigned_type)y < 8 * sizeof x ? (type)((unsigned_type)x << y) : 0;                                    \
    }                                                                                                                  \
                                                                                                                       \
    FUNCTION type bitwise_right_shift_##name(type x, type y)                                                           \
    {                                                                                                                  \
        return (unsigned_type)y < 8 * sizeof x ? x >> y : -(x < 0);                                                    \
    }                                                                                                                  \
                                                                                                                       \
    FUNCTION type power_##name(type x, type y)                                                                         \
    {                                                                                                                  \
        if (y < 0)                                                                                                     \
            return x == 1 ? 1 : x == (type)-1 ? (y & 1 ? -1 : 1) : 0;                                                  \
        type result = 1;                                                                                               \
        for (; y; y >>= 1, x *= x)                                                                                     \
            result *= y & 1 ? x : 1;                                                                                   \
        return result;                                                                                                 \
    }

INTEGER(int8, int8_t, uint8_t)
INTEGER(int16, int16_t, uint16_t)
INTEGER(int32, int32_t, uint32_t)
INTEGER(int64, int64_t, uint64_t)
INTEGER(uint8, uint8_t, uint8_t)
INTEGER(uint16, uint16_t, uint16_t)
INTEGER(uint32, uint32_t, uint32_t)
INTEGER(uint64, uint64_t, uint64_t)

/* Floating formats smaller than float32, with `e` exponent and `m` mantissa bits. `top` is the first code that is not
   finite: infinity, or NaN where the format has no infinity. narrow rounds to nearest even. */
FUNCTION uint32_t narrow(float x, int e, int m, uint32_t top, uint32_t nan)
{
    uint32_t bits = bits_of_float32(x), size = bits & 0x7fffffff;
    int bias = (1 << (e - 1)) - 1, dropped = 23 - m;
    /* Half an ulp, less one where the kept part is even, carries into it exactly when it must be rounded up. */
    uint32_t normal = (size + (1u << (dropped - 1)) - 1 + (size >> dropped & 1)) >> dropped;
    normal -= (uint32_t)(127 - bias) << m;
    /* Below the smallest normal number, adding the power of two whose ulp is the format's last bit rounds. */
    uint32_t anchor = (uint32_t)(128 - bias + dropped) << 23;
    uint32_t subnormal = bits_of_float32(float32_of_bits(size) + float32_of_bits(anchor)) - anchor;
    uint32_t code = size < (uint32_t)(128 - bias) << 23 ? subnormal : normal;
    code = code > top ? top : code;
    code = size > 0x7f800000 ? nan : code;
    return code | bits >> 31 << (e + m);
}

FUNCTION float widen(uint32_t code, int e, int m, uint32_t top)
{
    int bias = (1 << (e - 1)) - 1, dropped = 23 - m;
    uint32_t size = code & ((1u << (e + m)) - 1), sign = code >> (e + m) << 31;
    /* With the format's bias the bits are 2^(127 - bias) too small, and subnormal numbers are subnormal. */
    float finite = float32_of_bits(size << dropped) * float32_of_bits((uint32_t)(254 - bias) << 23);
    return float32_of_bits(sign | (size < top ? bits_of_float32(finite) : 0x7f800000 | size << dropped));
}

#ifdef __CUDACC__
/* One instruction each; NaN becomes 0x7fff. */
FUNCTION uint16_t bfloat16_from_float32(float x)
{
    uint16_t code;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(code) : "f"(x));
    return code;
}

FUNCTION uint16_t float16_from_float32(float x)
{
    uint16_t code;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(code) : "f"(x));
    return code;
}

FUNCTION float float32_from_float16(uint16_t code)
{
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(code));
    return x;
}
#else
FUNCTION uint16_t bfloat16_from_float32(float x) { return narrow(x, 8, 7, 0x7f80, 0x7fc0); }
FUNCTION uint16_t float16_from_float32(float x) { return narrow(x, 5, 10, 0x7c00, 0x7e00); }
FUNCTION float float32_from_float16(uint16_t code) { return widen(code, 5, 10, 0x7c00); }
#endif
FUNCTION uint8_t float8_e4m3fn_from_float32(float x) { return narrow(x, 4, 3, 0x7f, 0x7f); }
FUNCTION uint8_t float8_e5m2_from_float32(float x) { return narrow(x, 5, 2, 0x7c, 0x7e); }

FUNCTION float float32_from_bfloat16(uint16_t code) { return float32_of_bits((uint32_t)code << 16); }
FUNCTION float float32_from_float8_e4m3fn(uint8_t code) { return widen(code, 4, 3, 0x7f); }
FUNCTION float float32_from_float8_e5m2(uint8_t code) { return widen(code, 5, 2, 0x7c); }

/* NumPy rounds float64 to float16 once, ml_dtypes to its formats through float32. Rounding to odd keeps in the last bit
   of a float32 whether anything was cut off, so that the second rounding is right. */
FUNCTION uint16_t float16_from_float64(double x)
{
    float nearest = (float)x;
    uint32_t bits = bits_of_float32(nearest) - (fabs(nearest) > fabs(x));
    return float16_from_float32(float32_of_bits(bits | (nearest != x)));
}

FUNCTION uint16_t bfloat16_from_float64(double x) { return bfloat16_from_float32((float)x); }
FUNCTION uint8_t float8_e4m3fn_from_float64(double x) { return float8_e4m3fn_from_float32((float)x); }
FUNCTION uint8_t float8_e5m2_from_float64(double x) { return float8_e5m2_from_float32((float)x); }

/* Block `block` of a draw, four words: Philox 4x32-10 (Salmon et al. 2011, section 3.3) of the 128-bit counter (block
   number, stream, counter) and the 64-bit key. */
typedef struct { uint32_t w0, w1, w2, w3; } random_block;

FUNCTION random_block philox(uint64_t key, uint64_t counter, uint32_t stream, uint64_t block)
{
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32) + (stream << 16);
    uint32_t c2 = (uint32_t)counter, c3 = (uint32_t)(counter >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)c0 * 0xD2511F53, p1 = (uint64_t)c2 * 0xCD9E8D57;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    random_block drawn = {c0, c1, c2, c3};
    return drawn;
}

/* Word `position` of a draw: word position % 4 of block position / 4. */
FUNCTION uint32_t random_bits(uint64_t key, uint64_t counter, uint32_t stream, int64_t position)
{
    random_block drawn = philox(key, counter, stream, (uint64_t)position / 4);
    uint32_t word = (uint32_t)position % 4;
    return word < 2 ? (word == 0 ? drawn.w0 : drawn.w1) : (word == 2 ? drawn.w2 : drawn.w3);
}

#ifndef __CUDACC__
/* words[i] is word start + i of a draw; start and count are multiples of 4. */
FUNCTION void random_words(uint64_t key, uint64_t counter, uint32_t stream, int64_t start, int64_t count,
                           uint32_t *words)
{
#pragma omp simd
    for (int64_t i = 0; i < count / 4; i++) {
        random_block drawn = philox(key, counter, stream, (uint64_t)(start / 4 + i));
        words[4 * i] = drawn.w0;
        words[4 * i + 1] = drawn.w1;
        words[4 * i + 2] = drawn.w2;
        words[4 * i + 3] = drawn.w3;
    }
}
#endif
