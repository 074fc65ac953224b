// Elementary functions and conversions for the processor, without branches so that the compiler makes vectors of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX__
#include <immintrin.h>
#endif

#include "activations.h"

namespace ops {

template <class To, class From>
OPS_BOTH To bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}

template <class F>
struct Math;

template <>
struct Math<double> {
    static double expm1(double x) { return std::expm1(x < 709 ? x : 709); }  // e / (e + 2) has to stay a number
    static double exp(double x) { return std::exp(x); }
    static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
    static double softplus(double x) { return (x < 0 ? 0 : x) + std::log1p(std::exp(-std::fabs(x))); }
};

template <>
struct Math<float> {
    // x = n ln 2 + r with |r| <= ln 2 / 2; returns 2^n, and e^r - 1 in p. The Taylor polynomial up to r^7 leaves out
    // terms below 6e-9; ln 2 is split in two so that n times its first part is exact. A NaN passes.
    static OPS_BOTH float split(float x, float& p) {
        x = x > 87.0f ? 87.0f : x;
        x = x < -87.0f ? -87.0f : x;
        const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
        const float shifted = x * 1.44269504f + rounder, n = shifted - rounder;
        const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
        float q = 1.0f / 5040;
        q = q * r + 1.0f / 720;
        q = q * r + 1.0f / 120;
        q = q * r + 1.0f / 24;
        q = q * r + 1.0f / 6;
        q = q * r + 0.5f;
        p = r + r * r * q;
        return bits<float>((bits<uint32_t>(shifted) + 127u) << 23);  // n stands in the low bits of `shifted`
    }
    static OPS_BOTH float exp(float x) {
        float p, scale = split(x, p);
        return scale * p + scale;
    }
    static OPS_BOTH float expm1(float x) {
        float p, scale = split(x, p);
        return scale * p + (scale - 1.0f);
    }
    static OPS_BOTH float sigmoid(float x) {
        const float z = exp(x < 0 ? x : -x);  // of a negative number: never overflows
        return (x < 0 ? z : 1.0f) / (1.0f + z);
    }
    // log(1 + z) = 2 artanh(z / (2 + z)) for z = e^-|x| in (0, 1]: the series up to s^15 leaves out less than 1e-9.
    static OPS_BOTH float softplus(float x) {
        const float z = exp(x < 0 ? x : -x);
        const float s = z / (z + 2.0f), t = s * s;
        float q = 1.0f / 15;
        q = q * t + 1.0f / 13;
        q = q * t + 1.0f / 11;
        q = q * t + 1.0f / 9;
        q = q * t + 1.0f / 7;
        q = q * t + 1.0f / 5;
        q = q * t + 1.0f / 3;
        q = q * t + 1.0f;
        return (x < 0 ? 0.0f : x) + 2.0f * s * q;
    }
};

struct Half {
    uint16_t word;
};
struct BFloat {
    uint16_t word;
};

template <class T>
struct Compute {
    using type = float;
};
template <>
struct Compute<double> {
    using type = double;
};

// IEEE half precision by integer arithmetic; a multiplication by a power of two handles the subnormal numbers.
OPS_BOTH float widen(Half h) {
    uint32_t magnitude = uint32_t(h.word & 0x7fff) << 13, sign = uint32_t(h.word & 0x8000) << 16;
    float finite = bits<float>(magnitude) * 5.192296858534828e33f;  // 2^112
    uint32_t special = magnitude | 0x7f800000u;                      // infinity and NaN
    return bits<float>((magnitude >= 0x0f800000u ? special : bits<uint32_t>(finite)) | sign);
}

OPS_BOTH Half narrow_half(float x) {
    uint32_t word = bits<uint32_t>(x), sign = word >> 31 << 15, magnitude = word & 0x7fffffff;
    uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;  // to nearest, ties to even
    // Below 2^-14: adding 1/2 rounds at the last bit that a subnormal half has.
    uint32_t tiny = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t result = magnitude < 0x38800000u ? tiny : normal;
    result = magnitude >= 0x477ff000u ? 0x7c00u : result;  // rounds to 65536 or more
    result = magnitude > 0x7f800000u ? 0x7e00u : result;
    return Half{uint16_t(result | sign)};
}

OPS_BOTH float widen(BFloat b) { return bits<float>(uint32_t(b.word) << 16); }

OPS_BOTH BFloat narrow_bfloat(float x) {
    uint32_t word = bits<uint32_t>(x);
    uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
    return BFloat{uint16_t(x == x ? rounded : 0x7fc0u)};
}

// n numbers at `from` in the precision of the computation: `from` itself, or `buffer` filled.
inline const float* load(const float* from, float*, int64_t) { return from; }
inline const double* load(const double* from, double*, int64_t) { return from; }
inline const float* load(const BFloat* from, float* __restrict buffer, int64_t n) {
    for (int64_t i = 0; i < n; i++) buffer[i] = widen(from[i]);
    return buffer;
}
inline const float* load(const Half* from, float* __restrict buffer, int64_t n) {
    int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(buffer + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
    for (; i < n; i++) buffer[i] = widen(from[i]);
    return buffer;
}

// Where to compute n numbers for `to`: there, or in `buffer`; `store` brings them from there.
inline float* target(float* to, float*) { return to; }
inline double* target(double* to, double*) { return to; }
inline float* target(Half*, float* buffer) { return buffer; }
inline float* target(BFloat*, float* buffer) { return buffer; }

inline void store(float*, const float*, int64_t) {}
inline void store(double*, const double*, int64_t) {}
inline void store(BFloat* __restrict to, const float* __restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = narrow_bfloat(from[i]);
}
inline void store(Half* __restrict to, const float* __restrict from, int64_t n) {
    int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(
            reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) to[i] = narrow_half(from[i]);
}

// A result that no cache will hold until it is read again is written around the caches: a normal store would first
// fetch from memory what it overwrites.
constexpr int64_t STREAM_BYTES = 4 << 20;

template <class T>
bool can_stream(const T* to, int64_t row, int64_t total) {
#ifdef __AVX__
    const bool aligned = reinterpret_cast<uintptr_t>(to) % 32 == 0 && row * int64_t(sizeof(T)) % 32 == 0;
    return aligned && total * int64_t(sizeof(T)) >= STREAM_BYTES;
#else
    return false;
#endif
}

// Both at multiples of 32 bytes, n elements in all a multiple of 32 bytes.
template <class T>
inline void stream([[maybe_unused]] T* to, [[maybe_unused]] const T* from, [[maybe_unused]] int64_t n) {
#ifdef __AVX__
    __m256i* target = reinterpret_cast<__m256i*>(to);
    const __m256i* source = reinterpret_cast<const __m256i*>(from);
    const int64_t count = n * int64_t(sizeof(T)) / 32;
    for (int64_t i = 0; i < count; i++) _mm256_stream_si256(target + i, _mm256_load_si256(source + i));
#endif
}

// To be called by a thread after its last `stream`: makes them visible to the others.
inline void finish_streams() {
#ifdef __AVX__
    _mm_sfence();
#endif
}

}  // namespace ops
