// upfirdn2d on the GPU for 4 x 4 taps that double, halve or keep the size: what the networks do with [1, 3, 3, 1].
//
// A filter that is the product of a column and a row, which its taps tell, costs 8 multiplications instead of 16. The
// taps are read and tested on the GPU, so that the host never waits.

#include <type_traits>

#include "cuda_math.cuh"

namespace {

using namespace ops;

template <class T>
struct Job {
    using F = typename Compute<T>::type;
    T* y;
    const T* x;
    const F* f;  // [4] or [4, 4]
    bool is_1d, reverse;
    F gain;
    int64_t num, channels, height, width, out_height, out_width, pad_y, pad_x;
};

template <class F>
struct Taps {
    F all[16], column[4], row[4];  // in the order of a correlation, the gain included
    bool separable;
};

template <class T, class F = typename Compute<T>::type>
__device__ void read_taps(const Job<T>& job, Taps<F>& taps) {
    int largest = 0;
    for (int i = 0; i < 16; i++) {
        const int at = job.reverse ? 15 - i : i;
        taps.all[i] = job.gain * (job.is_1d ? job.f[at / 4] * job.f[at % 4] : job.f[at]);
        if (fabs(taps.all[i]) > fabs(taps.all[largest])) largest = i;
    }
    const F peak = taps.all[largest];
    taps.separable = true;
    for (int i = 0; i < 4; i++) {
        taps.column[i] = peak == F(0) ? F(0) : taps.all[i * 4 + largest % 4] / peak;
        taps.row[i] = taps.all[largest / 4 * 4 + i];
    }
    const F tolerance = (sizeof(F) == 4 ? F(1.2e-7) : F(2.3e-16)) * F(fabs(peak));
    for (int i = 0; i < 16; i++)
        if (fabs(taps.all[i] - taps.column[i / 4] * taps.row[i % 4]) > tolerance) taps.separable = false;
}

// Along either axis, output o of a group that begins with an even one uses the inputs o * DOWN + j, or where UP is 2,
// o / 2 + (o odd) + j, counted from the first input of the group. They meet NEAR taps: j, or (o odd) + 2 j.
template <int UP, int DOWN>
struct Shape {
    static constexpr int NEAR = 4 / UP;
    static constexpr OPS_BOTH int inputs(int outputs) { return UP == 2 ? outputs / 2 + 2 : (outputs - 1) * DOWN + 4; }
    static constexpr OPS_BOTH int input(int o) { return UP == 2 ? o / 2 + o % 2 : o * DOWN; }
    static constexpr OPS_BOTH int tap(int o, int j) { return UP == 2 ? o % 2 + 2 * j : j; }
    static __device__ __forceinline__ int64_t start(int64_t out, int64_t pad) {  // UP 2: both are even
        return UP == 2 ? (out - pad) / 2 : out * DOWN - pad;
    }
};

constexpr int TILE = 32;                        // a block makes TILE x TILE outputs of a plane
constexpr int STRIP = TILE * TILE / THREADS;    // a thread makes that many, one below the other

// Planes: the inputs of a tile go through shared memory, N at a time.
template <class T, int UP, int DOWN, int N>
__global__ void __launch_bounds__(THREADS) planes_kernel(Job<T> job) {
    using F = typename Compute<T>::type;
    using S = Shape<UP, DOWN>;
    constexpr int INPUTS = S::inputs(TILE), VECTORS = (INPUTS + 2 * N - 2) / N, ROWS = S::inputs(STRIP);
    __shared__ Taps<F> taps;
    alignas(16) __shared__ F tile[INPUTS][VECTORS * N];
    if (threadIdx.x == 0) read_taps(job, taps);
    __syncthreads();

    const int lane = threadIdx.x % TILE, strip = threadIdx.x / TILE * STRIP;
    F weights[4][S::NEAR], row_weights[S::NEAR], column_weights[4];
    for (int j = 0; j < S::NEAR; j++) {
        row_weights[j] = taps.row[S::tap(lane, j)];
        for (int i = 0; i < 4; i++) weights[i][j] = taps.all[i * 4 + S::tap(lane, j)];
    }
    for (int i = 0; i < 4; i++) column_weights[i] = taps.column[i];

    const int64_t tiles_x = (job.out_width + TILE - 1) / TILE, tiles_y = (job.out_height + TILE - 1) / TILE;
    const int64_t tiles = job.num * job.channels * tiles_y * tiles_x;
    for (int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
        int64_t tile_x, tile_y;
        const int64_t plane = divide(divide(number, tiles_x, tile_x), tiles_y, tile_y);
        const int64_t first_y = S::start(tile_y * TILE, job.pad_y), first_x = S::start(tile_x * TILE, job.pad_x);
        const int shift = int(((first_x % N) + N) % N);  // N divides the width: a vector lies inside or outside
        const T* x = job.x + plane * job.height * job.width;
        __syncthreads();  // the last tile has been read
        for (int i = threadIdx.x; i < INPUTS * VECTORS; i += THREADS) {
            const int64_t row = first_y + i / VECTORS, column = first_x - shift + i % VECTORS * N;
            Vector<T, N> values{};
            if (row >= 0 && row < job.height && column >= 0 && column < job.width)
                values = *reinterpret_cast<const Vector<T, N>*>(x + row * job.width + column);
#pragma unroll
            for (int n = 0; n < N; n++) tile[i / VECTORS][i % VECTORS * N + n] = widen(values.at[n]);
        }
        __syncthreads();

        F sums[STRIP] = {};
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            const F* inputs = &tile[S::input(strip) + row][S::input(lane) + shift];
            F values[S::NEAR], filtered = 0;
#pragma unroll
            for (int j = 0; j < S::NEAR; j++) {
                values[j] = inputs[j];
                filtered += row_weights[j] * values[j];
            }
#pragma unroll
            for (int o = 0; o < STRIP; o++) {
                const int j = row - S::input(o);
                if (j < 0 || j >= S::NEAR) continue;
                const int tap = S::tap(o, j < 0 ? 0 : j);
                if (taps.separable) {
                    sums[o] += column_weights[tap] * filtered;
                } else {
#pragma unroll
                    for (int k = 0; k < S::NEAR; k++) sums[o] += weights[tap][k] * values[k];
                }
            }
        }
        const int64_t out_x = tile_x * TILE + lane, out_y = tile_y * TILE + strip;
        T* y = job.y + (plane * job.out_height + out_y) * job.out_width + out_x;
#pragma unroll
        for (int o = 0; o < STRIP; o++)
            if (out_x < job.out_width && out_y + o < job.out_height) y[o * job.out_width] = narrow<T>(sums[o]);
    }
}

// Channels last: a thread makes 2 x 2 pixels of N channels; N divides the channels.
template <class T, int UP, int DOWN, int N>
__global__ void __launch_bounds__(THREADS) channels_kernel(Job<T> job) {
    using F = typename Compute<T>::type;
    using S = Shape<UP, DOWN>;
    using V = Vector<T, N>;
    constexpr int INPUTS = S::inputs(2);
    __shared__ Taps<F> taps;
    if (threadIdx.x == 0) read_taps(job, taps);
    __syncthreads();

    const int64_t groups = job.channels / N, wide = (job.out_width + 1) / 2, high = (job.out_height + 1) / 2;
    const int64_t total = job.num * high * wide * groups, step = int64_t(gridDim.x) * THREADS;
    for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < total; i += step) {
        int64_t group, out_x, out_y;
        const int64_t image = divide(divide(divide(i, groups, group), wide, out_x), high, out_y);
        out_x *= 2;
        out_y *= 2;
        const int64_t first_y = S::start(out_y, job.pad_y), first_x = S::start(out_x, job.pad_x);
        F sums[2][2][N] = {};
#pragma unroll
        for (int row = 0; row < INPUTS; row++) {
            const int64_t in_y = first_y + row;
            if (in_y < 0 || in_y >= job.height) continue;
            V values[INPUTS];
#pragma unroll
            for (int column = 0; column < INPUTS; column++) {
                const int64_t in_x = first_x + column;
                values[column] = V{};
                if (in_x >= 0 && in_x < job.width)
                    values[column] = *reinterpret_cast<const V*>(
                        job.x + ((image * job.height + in_y) * job.width + in_x) * job.channels + group * N);
            }
#pragma unroll
            for (int ox = 0; ox < 2; ox++) {
#pragma unroll
                for (int oy = 0; oy < 2; oy++) {
                    const int j = row - S::input(oy);
                    if (j < 0 || j >= S::NEAR) continue;
                    const int tap = S::tap(oy, j < 0 ? 0 : j);
#pragma unroll
                    for (int k = 0; k < S::NEAR; k++) {
                        const F weight = taps.all[tap * 4 + S::tap(ox, k)];
#pragma unroll
                        for (int n = 0; n < N; n++) sums[oy][ox][n] += weight * widen(values[S::input(ox) + k].at[n]);
                    }
                }
            }
        }
#pragma unroll
        for (int oy = 0; oy < 2; oy++) {
#pragma unroll
            for (int ox = 0; ox < 2; ox++) {
                if (out_y + oy >= job.out_height || out_x + ox >= job.out_width) continue;
                V result;
#pragma unroll
                for (int n = 0; n < N; n++) result.at[n] = narrow<T>(sums[oy][ox][n]);
                const int64_t pixel = (image * job.out_height + out_y + oy) * job.out_width + out_x + ox;
                *reinterpret_cast<V*>(job.y + pixel * job.channels + group * N) = result;
            }
        }
    }
}

template <class T, int UP, int DOWN>
int run(const Job<T>& job, bool channels_last, void* stream) {
    constexpr int N = WIDE<T>;
    const bool aligned = is_aligned(job.x) && is_aligned(job.y);
    if (channels_last) {
        const int64_t pixels = job.num * ((job.out_height + 1) / 2) * ((job.out_width + 1) / 2);
        if (aligned && job.channels % N == 0)
            return launch(channels_kernel<T, UP, DOWN, N>, dim3(blocks_for(pixels * job.channels / N)), stream, job);
        return launch(channels_kernel<T, UP, DOWN, 1>, dim3(blocks_for(pixels * job.channels)), stream, job);
    }
    const int64_t tiles_x = (job.out_width + TILE - 1) / TILE, tiles_y = (job.out_height + TILE - 1) / TILE;
    const dim3 grid(blocks_for(job.num * job.channels * tiles_y * tiles_x * THREADS));
    if (aligned && job.width % N == 0) return launch(planes_kernel<T, UP, DOWN, N>, grid, stream, job);
    return launch(planes_kernel<T, UP, DOWN, 1>, grid, stream, job);
}

}  // namespace

// axes as for ops_upfirdn2d_cpu, with equal factors (1, 1), (2, 1) or (1, 2) along both axes, 4 taps, and where up is
// 2, even padding before. Not
// for double. Returns a cudaError, or -1 for what it can't do.
extern "C" int ops_upfirdn2d_small_cuda(
    int dtype, void* y, const void* x, const void* f, int is_1d, int64_t num, int64_t channels, int channels_last,
    const int64_t* axes, int reverse, double gain, void* stream) {
    if (dtype == FLOAT64) return -1;
    return with_type(dtype, [&](auto example) {
        using T = std::conditional_t<std::is_same_v<decltype(example), double>, float, decltype(example)>;
        using F = typename Compute<T>::type;
        const Job<T> job{
            static_cast<T*>(y), static_cast<const T*>(x), static_cast<const F*>(f), is_1d != 0, reverse != 0, F(gain),
            num, channels, axes[0], axes[1], axes[2], axes[3], axes[8], axes[9]};
        const bool last = channels_last != 0;
        const bool is_even = axes[8] % 2 == 0 && axes[9] % 2 == 0;
        if (axes[4] == 2 && axes[6] == 1 && is_even) return run<T, 2, 1>(job, last, stream);
        if (axes[4] == 1 && axes[6] == 2) return run<T, 1, 2>(job, last, stream);
        if (axes[4] == 1 && axes[6] == 1) return run<T, 1, 1>(job, last, stream);
        return -1;
    });
}
