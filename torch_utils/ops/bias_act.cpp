// bias_act on the processor. Every tensor is dense, in one order of memory, seen as [outer, channels, inner].
//
// The memory is the bottleneck: one pass, blocks that stay in the first cache, inner loops without branches. What is
// added up is added in an order that depends on the shape alone, never on the number of threads.

#include <ATen/Parallel.h>

#include <vector>

#include "cpu_math.h"

namespace {

using namespace ops;

constexpr int64_t BLOCK = 1024;  // elements: a few buffers of them fit the first cache
constexpr int64_t SPACE = 6 * BLOCK;  // for the result, a, ref, dy and twice as many biases

template <class F>
struct Block {
    F* out;
    const F* a;     // x, dy or ddx
    const F* ref;   // y or x; of order CURVATURE x
    const F* dy;    // order CURVATURE
    const F* bias;  // one per element
    int64_t n;
    Parameters<F> p;
};

template <class F, int ACT, int ORDER>
void compute_from_input(const Block<F>& block) {
    // Copies of the members: the compiler makes vectors only of what it knows not to change under way.
    F* __restrict out = block.out;
    const F *__restrict a = block.a, *__restrict x = ORDER == FORWARD ? block.a : block.ref;
    const F *__restrict dy = ORDER == CURVATURE ? block.dy : block.a, *__restrict bias = block.bias;
    const Parameters<F> p = block.p;
    const int64_t n = block.n;
    for (int64_t i = 0; i < n; i++) out[i] = from_input<ACT, ORDER, Math<F>>(a[i], dy[i], x[i] + bias[i], p);
}

template <class F>
void compute_from_result(const Block<F>& block) {
    F* __restrict out = block.out;
    const F *__restrict a = block.a, *__restrict y = block.ref;
    const Parameters<F> p = block.p;
    const int64_t n = block.n;
    for (int64_t i = 0; i < n; i++) out[i] = slope_from_result(a[i], y[i], p);
}

template <class F>
void compute_scaled(const Block<F>& block) {
    F* __restrict out = block.out;
    const F* __restrict a = block.a;
    const F gain = block.p.gain;
    const int64_t n = block.n;
    for (int64_t i = 0; i < n; i++) out[i] = a[i] * gain;
}

template <class F, int ORDER>
auto smooth_function(int act) -> void (*)(const Block<F>&) {
    switch (act) {
        case TANH: return compute_from_input<F, TANH, ORDER>;
        case SIGMOID: return compute_from_input<F, SIGMOID, ORDER>;
        case ELU: return compute_from_input<F, ELU, ORDER>;
        case SELU: return compute_from_input<F, SELU, ORDER>;
        case SOFTPLUS: return compute_from_input<F, SOFTPLUS, ORDER>;
        case SWISH: return compute_from_input<F, SWISH, ORDER>;
        default: return compute_from_input<F, LRELU, ORDER>;
    }
}

template <class F>
auto block_function(int act, int order, bool from_result, bool has_ref) -> void (*)(const Block<F>&) {
    if (order == FORWARD) return smooth_function<F, FORWARD>(act);
    if (order == CURVATURE) return smooth_function<F, CURVATURE>(act);
    if (!has_ref) return compute_scaled<F>;
    return from_result ? compute_from_result<F> : smooth_function<F, SLOPE>(act);
}

template <class T>
struct Job {
    using F = typename Compute<T>::type;
    T* out;
    const T *a, *ref, *dy, *b;
    int64_t channels, inner;
    Parameters<F> p;
    void (*compute)(const Block<F>&);

    // Whether the biases repeat within a block, channels innermost: then they are laid out once, two blocks of them.
    bool is_periodic() const { return inner == 1 && channels <= BLOCK; }

    void prepare(F* buffer) const {
        if (b == nullptr || !is_periodic()) return;
        const F* one_period = load(b, buffer, channels);
        for (int64_t i = 0; i < 2 * BLOCK; i++) buffer[i] = i < channels ? one_period[i] : buffer[i - channels];
    }

    // Biases of the elements [start, start + n): the bias of a channel holds for `inner` of them. Without any, the
    // zeros that the caller's buffer was made with.
    const F* biases(int64_t start, int64_t n, F* buffer) const {
        if (b == nullptr) return buffer;
        if (is_periodic()) return buffer + start % channels;
        int64_t row = start / inner, channel = row % channels, end = (row + 1) * inner - start;
        if (inner == 1 && channel + n <= channels) return load(b + channel, buffer, n);
        for (int64_t i = 0; i < n; end += inner) {
            F one;
            const F bias = *load(b + channel, &one, 1);
            for (const int64_t stop = end < n ? end : n; i < stop; i++) buffer[i] = bias;
            channel = channel + 1 == channels ? 0 : channel + 1;
        }
        return buffer;
    }

    // Returns where the n <= BLOCK results stand in the precision of the computation.
    const F* run(int64_t start, int64_t n, F* buffers, const F* bias) const {
        F* result = target(out + start, buffers);
        Block<F> block{result, load(a + start, buffers + BLOCK, n), nullptr, nullptr, bias, n, p};
        if (ref != nullptr) block.ref = load(ref + start, buffers + 2 * BLOCK, n);
        if (dy != nullptr) block.dy = load(dy + start, buffers + 3 * BLOCK, n);
        compute(block);
        store(out + start, result, n);
        return result;
    }
};

template <class T>
void run_elementwise(const Job<T>& job, int64_t total) {
    using F = typename Job<T>::F;
    // Blocks, not elements, are shared out: the same elements meet in a vector whatever the number of threads.
    at::parallel_for(0, (total + BLOCK - 1) / BLOCK, 32, [&](int64_t begin, int64_t end) {
        alignas(64) F buffers[SPACE] = {};
        job.prepare(buffers + 4 * BLOCK);
        for (int64_t block = begin; block < end; block++) {
            const int64_t start = block * BLOCK, n = std::min(BLOCK, total - start);
            job.run(start, n, buffers, job.biases(start, n, buffers + 4 * BLOCK));
        }
    });
}

template <class F>
F sum(const F* __restrict values, int64_t n) {
    constexpr int LANES = 32;
    F lanes[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; lane++) lanes[lane] += values[i + lane];
    for (int lane = 0; i < n; i++, lane++) lanes[lane] += values[i];
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; lane++) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

template <class F>
void add(F* __restrict into, const F* __restrict values, int64_t n) {
    for (int64_t i = 0; i < n; i++) into[i] += values[i];
}

// db[channel] = the sum over all else of the results, which are written too.
template <class T>
void run_with_sums(const Job<T>& job, int64_t outer, double* db) {
    using F = typename Job<T>::F;
    const int64_t channels = job.channels, inner = job.inner;
    if (inner > 1) {
        std::vector<double> sums(outer * channels);
        const int64_t grain = std::max<int64_t>(1, 32 * BLOCK / inner);
        at::parallel_for(0, outer * channels, grain, [&](int64_t begin, int64_t end) {
            alignas(64) F buffers[SPACE] = {};
            job.prepare(buffers + 4 * BLOCK);
            for (int64_t row = begin; row < end; row++) {
                const F* bias = job.biases(row * inner, std::min(BLOCK, inner), buffers + 4 * BLOCK);
                double total = 0;
                for (int64_t start = 0; start < inner; start += BLOCK) {
                    const int64_t n = std::min(BLOCK, inner - start);
                    total += sum(job.run(row * inner + start, n, buffers, bias), n);
                }
                sums[row] = total;
            }
        });
        for (int64_t row = 0; row < outer * channels; row++) db[row % channels] += sums[row];
        return;
    }
    const int64_t rows = std::max<int64_t>(1, 32 * BLOCK / channels), chunks = (outer + rows - 1) / rows;
    std::vector<F> sums(chunks * channels);
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
        alignas(64) F buffers[SPACE] = {};
        job.prepare(buffers + 4 * BLOCK);
        for (int64_t chunk = begin; chunk < end; chunk++) {
            F* __restrict into = sums.data() + chunk * channels;
            const int64_t last = std::min(outer, (chunk + 1) * rows);
            const int64_t together = std::max<int64_t>(1, BLOCK / channels);  // rows of one block
            for (int64_t row = chunk * rows; row < last; row += together) {
                const int64_t width = std::min(together, last - row) * channels;
                for (int64_t first = 0; first < width; first += BLOCK) {
                    const int64_t n = std::min(BLOCK, width - first), start = row * channels + first;
                    const F* result = job.run(start, n, buffers, job.biases(start, n, buffers + 4 * BLOCK));
                    if (channels <= BLOCK) {
                        for (int64_t i = 0; i < n; i += channels) add(into, result + i, channels);
                    } else {
                        add(into + first, result, n);
                    }
                }
            }
        }
    });
    for (int64_t i = 0; i < chunks * channels; i++) db[i % channels] += sums[i];
}

template <class T>
void run(
    int act, int order, bool from_result, void* out, const void* a, const void* ref, const void* dy, const void* b,
    double* db, int64_t outer, int64_t channels, int64_t inner, double alpha, double gain, double clamp) {
    using F = typename Compute<T>::type;
    // A result that was clamped is known by its value, which has the precision of T.
    F bound = F(clamp);
    if (from_result && order == SLOPE) {
        T rounded = T();
        F* spot = target(&rounded, &bound);
        *spot = F(clamp);
        store(&rounded, spot, 1);
        bound = *load(&rounded, &bound, 1);
    }
    Job<T> job{
        static_cast<T*>(out), static_cast<const T*>(a), static_cast<const T*>(ref), static_cast<const T*>(dy),
        static_cast<const T*>(b), channels, inner, {F(alpha), F(gain), bound},
        block_function<F>(act, order, from_result, ref != nullptr)};
    if (db == nullptr) {
        run_elementwise(job, outer * channels * inner);
    } else {
        run_with_sums(job, outer, db);
    }
}

}  // namespace

// Returns 0, or 1 for a dtype it doesn't know. `db` is [channels], zero; null: not wanted.
extern "C" int ops_bias_act_cpu(
    int dtype, int act, int order, int from_result, void* out, const void* a, const void* ref, const void* dy,
    const void* b, double* db, int64_t outer, int64_t channels, int64_t inner, double alpha, double gain,
    double clamp) {
    auto call = [&](auto function) {
        function(act, order, from_result != 0, out, a, ref, dy, b, db, outer, channels, inner, alpha, gain, clamp);
        return 0;
    };
    switch (dtype) {
        case ops::FLOAT32: return call(run<float>);
        case ops::FLOAT64: return call(run<double>);
        case ops::FLOAT16: return call(run<ops::Half>);
        case ops::BFLOAT16: return call(run<ops::BFloat>);
        default: return 1;
    }
}
