// bias_act on the GPU. Every tensor is dense, in one order of memory, seen as [outer, channels, inner].
//
// The memory is the bottleneck: one pass, 16 bytes at a time. Sums are added up in an order that depends on the shape
// alone: a block writes its part of the sum of a channel, and torch adds the parts.

#include "cuda_math.cuh"

namespace {

using namespace ops;

template <class T>
struct Job {
    using F = typename Compute<T>::type;
    T* out;
    const T *a, *ref, *dy, *b;
    F* sums;  // [parts, channels]
    int64_t outer, channels, inner, parts;
    Parameters<F> p;
    int act;
    bool from_result;
};

template <int ORDER, class F>
__device__ __forceinline__ F smooth(int act, F a, F dy, F u, Parameters<F> p) {
    switch (act) {
        case TANH: return from_input<TANH, ORDER, Math<F>>(a, dy, u, p);
        case SIGMOID: return from_input<SIGMOID, ORDER, Math<F>>(a, dy, u, p);
        case ELU: return from_input<ELU, ORDER, Math<F>>(a, dy, u, p);
        case SELU: return from_input<SELU, ORDER, Math<F>>(a, dy, u, p);
        case SOFTPLUS: return from_input<SOFTPLUS, ORDER, Math<F>>(a, dy, u, p);
        default: return from_input<SWISH, ORDER, Math<F>>(a, dy, u, p);
    }
}

// One element; `ref` is y or x.
template <int ORDER, bool SMOOTH, class T, class F>
__device__ __forceinline__ F element(const Job<T>& job, F a, F ref, F dy, F bias) {
    if (SMOOTH) return smooth<ORDER>(job.act, a, dy, (ORDER == FORWARD ? a : ref) + bias, job.p);
    if (ORDER == FORWARD) return from_input<LRELU, FORWARD, Math<F>>(a, dy, a + bias, job.p);
    if (job.ref == nullptr) return a * job.p.gain;
    if (job.from_result) return slope_from_result(a, ref, job.p);
    return from_input<LRELU, SLOPE, Math<F>>(a, dy, ref + bias, job.p);
}

// N elements from `start` on, of channel `channel`, of which `left` are still of this channel.
template <int ORDER, bool SMOOTH, int N, class T, class F = typename Compute<T>::type>
__device__ __forceinline__ void elements(const Job<T>& job, int64_t start, int64_t channel, int64_t left, F* results) {
    using V = Vector<T, N>;
    V a = *reinterpret_cast<const V*>(job.a + start), ref{}, dy{}, bias{}, out;
    if (job.ref != nullptr) ref = *reinterpret_cast<const V*>(job.ref + start);
    if (ORDER == CURVATURE) dy = *reinterpret_cast<const V*>(job.dy + start);
    if (job.b != nullptr) {
        if (left >= N) {
            const T one = job.b[channel];
#pragma unroll
            for (int i = 0; i < N; i++) bias.at[i] = one;
        } else if (job.inner == 1 && channel % N == 0 && channel + N <= job.channels && is_aligned(job.b)) {
            bias = *reinterpret_cast<const V*>(job.b + channel);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) {
                bias.at[i] = job.b[channel];
                if (--left == 0) {
                    left = job.inner;
                    channel = channel + 1 == job.channels ? 0 : channel + 1;
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        results[i] = element<ORDER, SMOOTH>(job, widen(a.at[i]), widen(ref.at[i]), widen(dy.at[i]), widen(bias.at[i]));
        out.at[i] = narrow<T>(results[i]);
    }
    *reinterpret_cast<V*>(job.out + start) = out;
}

template <class T, int ORDER, bool SMOOTH, int N>
__global__ void __launch_bounds__(THREADS) elementwise(Job<T> job) {
    const int64_t total = job.outer * job.channels * job.inner;
    const int64_t first = int64_t(blockIdx.x) * THREADS + threadIdx.x, step = int64_t(gridDim.x) * THREADS;
    typename Compute<T>::type results[N];
    for (int64_t vector = first; vector < total / N; vector += step) {
        int64_t within = 0, channel = 0;
        if (job.b != nullptr) divide(divide(vector * N, job.inner, within), job.channels, channel);
        elements<ORDER, SMOOTH, N>(job, vector * N, channel, job.inner - within, results);
    }
    const int64_t rest = total / N * N + first;  // fewer than N elements are left
    if (rest < total) {
        int64_t within = 0, channel = 0;
        if (job.b != nullptr) divide(divide(rest, job.inner, within), job.channels, channel);
        elements<ORDER, SMOOTH, 1>(job, rest, channel, job.inner - within, results);
    }
}

// A block for each channel and each part of its rows [outer, inner]; N divides inner.
template <class T, int ORDER, bool SMOOTH, int N>
__global__ void __launch_bounds__(THREADS) sum_planes(Job<T> job) {
    using F = typename Compute<T>::type;
    __shared__ F shared[THREADS];
    const int64_t channel = blockIdx.x, part = blockIdx.y, row_vectors = job.inner / N;
    const int64_t vectors = job.outer * row_vectors, chunk = (vectors + job.parts - 1) / job.parts;
    const int64_t end = (part + 1) * chunk < vectors ? (part + 1) * chunk : vectors;
    F sum = 0, results[N];
    for (int64_t vector = part * chunk + threadIdx.x; vector < end; vector += THREADS) {
        int64_t within;
        const int64_t row = divide(vector, row_vectors, within);
        const int64_t start = (row * job.channels + channel) * job.inner + within * N;
        elements<ORDER, SMOOTH, N>(job, start, channel, job.inner, results);
#pragma unroll
        for (int i = 0; i < N; i++) sum += results[i];
    }
    shared[threadIdx.x] = sum;
    for (int width = THREADS / 2; width > 0; width /= 2) {
        __syncthreads();
        if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
    }
    if (threadIdx.x == 0) job.sums[part * job.channels + channel] = shared[0];
}

// Channels innermost: a block for each part of the rows and each THREADS columns of N channels; N divides channels.
template <class T, int ORDER, bool SMOOTH, int N>
__global__ void __launch_bounds__(THREADS) sum_columns(Job<T> job) {
    using F = typename Compute<T>::type;
    __shared__ F shared[THREADS * N];
    const int64_t columns = job.channels / N, first = int64_t(blockIdx.y) * THREADS, part = blockIdx.x;
    const int width = columns - first < THREADS ? int(columns - first) : THREADS, together = THREADS / width;
    const int column = threadIdx.x % width, line = threadIdx.x / width;
    const int64_t chunk = (job.outer + job.parts - 1) / job.parts, channel = (first + column) * N;
    const int64_t end = (part + 1) * chunk < job.outer ? (part + 1) * chunk : job.outer;
    F sums[N] = {}, results[N];
    if (line < together) {
        for (int64_t row = part * chunk + line; row < end; row += together) {
            elements<ORDER, SMOOTH, N>(job, row * job.channels + channel, channel, 1, results);
#pragma unroll
            for (int i = 0; i < N; i++) sums[i] += results[i];
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++) shared[threadIdx.x * N + i] = sums[i];
    __syncthreads();
    if (line == 0) {
        for (int other = 1; other < together; other++)
#pragma unroll
            for (int i = 0; i < N; i++) sums[i] += shared[(other * width + column) * N + i];
#pragma unroll
        for (int i = 0; i < N; i++) job.sums[part * job.channels + channel + i] = sums[i];
    }
}

template <class T, int ORDER, bool SMOOTH>
int run_elementwise(const Job<T>& job, void* stream) {
    const int64_t total = job.outer * job.channels * job.inner;
    return launch(elementwise<T, ORDER, SMOOTH, WIDE<T>>, dim3(blocks_for(total / WIDE<T>)), stream, job);
}

// Sums are taken on the way only where it pays, of activations that are piecewise linear.
template <class T, int N>
int run_sums(const Job<T>& job, void* stream) {
    if (job.inner > 1) return launch(sum_planes<T, SLOPE, false, N>, dim3(job.channels, job.parts), stream, job);
    const dim3 grid(job.parts, (job.channels / N + THREADS - 1) / THREADS);
    return launch(sum_columns<T, SLOPE, false, N>, grid, stream, job);
}

template <class T>
int run(const Job<T>& job, int order, void* stream) {
    const bool is_smooth = !is_piecewise(job.act);
    if (job.sums != nullptr) {
        if (is_smooth || order != SLOPE) return -1;
        const bool wide = (job.inner > 1 ? job.inner : job.channels) % WIDE<T> == 0;
        return wide ? run_sums<T, WIDE<T>>(job, stream) : run_sums<T, 1>(job, stream);
    }
    if (order == CURVATURE) return run_elementwise<T, CURVATURE, true>(job, stream);
    if (order == SLOPE)
        return is_smooth ? run_elementwise<T, SLOPE, true>(job, stream) : run_elementwise<T, SLOPE, false>(job, stream);
    return is_smooth ? run_elementwise<T, FORWARD, true>(job, stream) : run_elementwise<T, FORWARD, false>(job, stream);
}

// A result that was clamped is known by its value, which has the precision of T.
float round_to(float x, float) { return x; }
double round_to(double x, double) { return x; }
float round_to(float x, __half) { return __half2float(__float2half_rn(x)); }
float round_to(float x, __nv_bfloat16) { return __bfloat162float(__float2bfloat16_rn(x)); }

}  // namespace

// All but b begin at a multiple of 16 bytes. `sums` is [parts, channels] in the precision of the computation, null: not
// wanted. Returns a cudaError, or -1 for an unknown dtype and for sums of what is not piecewise linear.
extern "C" int ops_bias_act_cuda(
    int dtype, int act, int order, int from_result, void* out, const void* a, const void* ref, const void* dy,
    const void* b, void* sums, int64_t outer, int64_t channels, int64_t inner, int64_t parts, double alpha, double gain,
    double clamp, void* stream) {
    return with_type(dtype, [&](auto example) {
        using T = decltype(example);
        using F = typename Compute<T>::type;
        const F bound = from_result && order == SLOPE ? round_to(F(clamp), T()) : F(clamp);
        const Job<T> job{
            static_cast<T*>(out), static_cast<const T*>(a), static_cast<const T*>(ref), static_cast<const T*>(dy),
            static_cast<const T*>(b), static_cast<F*>(sums), outer, channels, inner, parts,
            {F(alpha), F(gain), bound}, act, from_result != 0};
        return run(job, order, stream);
    });
}
