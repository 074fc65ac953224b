// Types, elementary functions and launches for the GPU kernels.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "activations.h"

namespace ops {

constexpr int THREADS = 256;        // of a block, in every kernel
constexpr int64_t MOST_BLOCKS = 1 << 16;  // further work is done by the same blocks

template <class F>
struct Math;

template <>
struct Math<float> {
    static __device__ __forceinline__ float exp(float x) { return expf(x); }
    static __device__ __forceinline__ float expm1(float x) { return expm1f(x < 87.0f ? x : 87.0f); }
    static __device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
    static __device__ __forceinline__ float softplus(float x) {
        return (x < 0.0f ? 0.0f : x) + log1pf(expf(-fabsf(x)));
    }
};

template <>
struct Math<double> {
    static __device__ __forceinline__ double exp(double x) { return ::exp(x); }
    static __device__ __forceinline__ double expm1(double x) { return ::expm1(x < 709.0 ? x : 709.0); }
    static __device__ __forceinline__ double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
    static __device__ __forceinline__ double softplus(double x) {
        return (x < 0.0 ? 0.0 : x) + ::log1p(::exp(-::fabs(x)));
    }
};

template <class T>
struct Compute {
    using type = float;
};
template <>
struct Compute<double> {
    using type = double;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T narrow(typename Compute<T>::type x);
template <>
__device__ __forceinline__ float narrow<float>(float x) { return x; }
template <>
__device__ __forceinline__ double narrow<double>(double x) { return x; }
template <>
__device__ __forceinline__ __half narrow<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// N numbers that are read and written at once; N * sizeof(T) is a power of two, at most 16.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
    T at[N];
};

template <class T>
constexpr int WIDE = 16 / sizeof(T);

OPS_BOTH bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

inline int64_t blocks_for(int64_t threads) {
    const int64_t blocks = (threads + THREADS - 1) / THREADS;
    return blocks < 1 ? 1 : blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS;
}

// a / b with a remainder; 32-bit arithmetic, which is several times faster, where the numbers allow it.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b, int64_t& remainder) {
    if (((a | b) >> 32) == 0) {
        const uint32_t quotient = uint32_t(a) / uint32_t(b);
        remainder = uint32_t(a) - quotient * uint32_t(b);
        return quotient;
    }
    remainder = a % b;
    return a / b;
}

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, void* stream, Arguments... arguments) {
    kernel<<<grid, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
    return cudaGetLastError();
}

// Call function(T()) with the type of the dtype; -1 for one that there isn't.
template <class Function>
int with_type(int dtype, Function function) {
    switch (dtype) {
        case FLOAT32: return function(float());
        case FLOAT64: return function(double());
        case FLOAT16: return function(__half());
        case BFLOAT16: return function(__nv_bfloat16());
        default: return -1;
    }
}

}  // namespace ops
