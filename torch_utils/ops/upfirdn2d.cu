// upfirdn2d on the GPU for any factors and filters: a thread for every element of the result, neighbours in memory side
// by side. What training uses most has kernels of its own in upfirdn2d_small.cu.

#include "cuda_math.cuh"

namespace {

using namespace ops;

struct Axis {
    int64_t size, out_size, up, down, pad, taps;
};

template <class From, class To>
struct Job {
    using F = typename Compute<From>::type;
    To* y;
    const From* x;
    const F* f;  // [vertical.taps, horizontal.taps]
    int64_t num, channels;
    bool channels_last, reverse;  // a reversed filter convolves
    F gain;
    Axis vertical, horizontal;
};

// Output o is the sum over m < count of taps first + m * up, times x[start + m]; what lies outside x is left out.
struct Window {
    int64_t first, start, count;
};

__device__ __forceinline__ Window window(const Axis& axis, int64_t out) {
    const int64_t lead = axis.pad - out * axis.down;  // of the first tap before sample 0 of the upsampled image
    int64_t first = lead % axis.up;
    first += first < 0 ? axis.up : 0;
    Window w{first, (first - lead) / axis.up, first < axis.taps ? (axis.taps - 1 - first) / axis.up + 1 : 0};
    if (w.start < 0) {
        w.first -= w.start * axis.up;
        w.count += w.start;
        w.start = 0;
    }
    w.count = w.start + w.count > axis.size ? axis.size - w.start : w.count;
    return w;
}

template <class From, class To>
__global__ void __launch_bounds__(THREADS) upfirdn2d_any(Job<From, To> job) {
    using F = typename Compute<From>::type;
    const int64_t width = job.horizontal.out_size, height = job.vertical.out_size;
    const int64_t total = job.num * job.channels * height * width, step = int64_t(gridDim.x) * THREADS;
    const int64_t stride_x = job.channels_last ? job.channels : 1, stride_y = stride_x * job.horizontal.size;
    const int64_t taps = job.vertical.taps * job.horizontal.taps;
    for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < total; i += step) {
        int64_t image, channel = 0, column, row, pixel = i;  // `image`: with its channel, where that is an outer axis
        if (job.channels_last) pixel = divide(i, job.channels, channel);
        image = divide(divide(pixel, width, column), height, row);
        const Window v = window(job.vertical, row), h = window(job.horizontal, column);
        const From* x = job.x + image * job.vertical.size * stride_y + channel;
        F sum = 0;
        for (int64_t m = 0; m < v.count; m++) {
            const From* line = x + (v.start + m) * stride_y + h.start * stride_x;
            const int64_t first = (v.first + m * job.vertical.up) * job.horizontal.taps + h.first;
            for (int64_t n = 0; n < h.count; n++) {
                const int64_t tap = first + n * job.horizontal.up;
                sum += job.f[job.reverse ? taps - 1 - tap : tap] * widen(line[n * stride_x]);
            }
        }
        job.y[i] = narrow<To>(sum * job.gain);
    }
}

}  // namespace

// From `from` to `to`, one of which is float32 where they differ. axes as for ops_upfirdn2d_cpu; f is double where
// `from` is, else float. Returns a cudaError, or -1 for dtypes it doesn't know.
extern "C" int ops_upfirdn2d_cuda(
    int from, int to, void* y, const void* x, const void* f, int64_t num, int64_t channels, int channels_last,
    const int64_t* axes, int reverse, double gain, void* stream) {
    auto run = [&](auto from_example, auto to_example) {
        using From = decltype(from_example);
        using To = decltype(to_example);
        using F = typename Compute<From>::type;
        const Job<From, To> job{
            static_cast<To*>(y), static_cast<const From*>(x), static_cast<const F*>(f), num, channels,
            channels_last != 0, reverse != 0, F(gain), {axes[0], axes[2], axes[4], axes[6], axes[8], axes[10]},
            {axes[1], axes[3], axes[5], axes[7], axes[9], axes[11]}};
        return launch(upfirdn2d_any<From, To>, dim3(blocks_for(num * channels * axes[2] * axes[3])), stream, job);
    };
    if (from == to) return with_type(from, [&](auto example) { return run(example, example); });
    if (from == FLOAT32 && to == FLOAT16) return run(float(), __half());
    if (from == FLOAT32 && to == BFLOAT16) return run(float(), __nv_bfloat16());
    if (from == FLOAT16 && to == FLOAT32) return run(__half(), float());
    if (from == BFLOAT16 && to == FLOAT32) return run(__nv_bfloat16(), float());
    return -1;
}
