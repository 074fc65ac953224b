// upfirdn2d on the processor: a vertical and a horizontal filter in one pass when the filter is a product of the two,
// else one horizontal filter for every row of it. A row of the result is made at a time, from rows of x that are still
// in the first cache; images are [planes, height, width] or, with the channels last, [images, height, width, channels].

#include <ATen/Parallel.h>

#include <array>
#include <numeric>
#include <vector>

#include "cpu_math.h"

namespace {

using namespace ops;

int64_t floor_mod(int64_t a, int64_t b) { return ((a % b) + b) % b; }

// Output o is the sum over the taps m * up + first of taps * x[start + m], see `Phase`; zeros of the upsampling are
// never met. Taps are in the order of a correlation.
struct Axis {
    int64_t size, out_size, up, down, pad, taps;

    int64_t first_tap(int64_t out) const { return floor_mod(pad - out * down, up); }
    int64_t start(int64_t out) const { return (out * down - pad + first_tap(out)) / up; }  // exact, may be negative
    int64_t count(int64_t out) const {
        const int64_t first = first_tap(out);
        return first < taps ? (taps - 1 - first) / up + 1 : 0;
    }
    int64_t phases() const { return up / std::gcd(up, down); }  // outputs o and o + phases() use the same taps
    int64_t step() const { return down / std::gcd(up, down); }  // and lie so many samples of x apart
};

// y = sum of w[m] * rows[m], or with ADD, y += it.
template <int M, bool ADD, class F>
void combine_few(F* __restrict y, const F* const* rows, const F* w, int64_t n) {
    const F *__restrict r0 = rows[0], *__restrict r1 = rows[M > 1 ? 1 : 0], *__restrict r2 = rows[M > 2 ? 2 : 0],
            *__restrict r3 = rows[M > 3 ? 3 : 0];
    const F w0 = w[0], w1 = w[M > 1 ? 1 : 0], w2 = w[M > 2 ? 2 : 0], w3 = w[M > 3 ? 3 : 0];
    for (int64_t i = 0; i < n; i++) {
        F sum = w0 * r0[i];
        if (M > 1) sum += w1 * r1[i];
        if (M > 2) sum += w2 * r2[i];
        if (M > 3) sum += w3 * r3[i];
        y[i] = ADD ? y[i] + sum : sum;
    }
}

template <bool ADD, class F>
void combine_up_to_4(F* y, const F* const* rows, const F* w, int64_t count, int64_t n) {
    switch (count) {
        case 1: return combine_few<1, ADD>(y, rows, w, n);
        case 2: return combine_few<2, ADD>(y, rows, w, n);
        case 3: return combine_few<3, ADD>(y, rows, w, n);
        default: return combine_few<4, ADD>(y, rows, w, n);
    }
}

template <class F>
void combine(F* y, const F* const* rows, const F* w, int64_t count, int64_t n, bool add) {
    if (count == 0 && !add) std::fill(y, y + n, F(0));
    for (int64_t m = 0; m < count; m += 4) {
        if (add || m > 0) {
            combine_up_to_4<true>(y, rows + m, w + m, count - m, n);
        } else {
            combine_up_to_4<false>(y, rows + m, w + m, count - m, n);
        }
    }
}

// y[q * stride_y] (+)= sum of w[m] * t[m + q * stride_t], for the strides that resizing by 2 has, without a branch.
template <int STRIDE_T, bool ADD, class F>
void slide(F* __restrict y, const F* __restrict t, const F* w, int64_t count, int64_t n) {
    if (count == 4) {
        const F w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
        for (int64_t q = 0; q < n; q++) {
            const F *s = t + q * STRIDE_T, sum = w0 * s[0] + w1 * s[1] + (w2 * s[2] + w3 * s[3]);
            y[q] = ADD ? y[q] + sum : sum;
        }
        return;
    }
    for (int64_t q = 0; q < n; q++) {
        F sum = 0;
        for (int64_t m = 0; m < count; m++) sum += w[m] * t[q * STRIDE_T + m];
        y[q] = ADD ? y[q] + sum : sum;
    }
}

// slide<2> with 4 taps: the even and the odd samples are parted first, so that each is shuffled once.
template <bool ADD, class F>
void halve(F* __restrict y, const F* __restrict t, const F* w, int64_t n) {
    constexpr int64_t PART = 128;
    alignas(32) F even[PART + 1], odd[PART + 1];
    const F w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
    for (int64_t start = 0; start < n; start += PART) {
        const int64_t count = std::min(PART, n - start);
        const F* __restrict pairs = t + 2 * start;
        F* __restrict out = y + start;
        for (int64_t q = 0; q <= count; q++) {
            even[q] = pairs[2 * q];
            odd[q] = pairs[2 * q + 1];
        }
        for (int64_t q = 0; q < count; q++) {
            const F sum = w0 * even[q] + w1 * odd[q] + (w2 * even[q + 1] + w3 * odd[q + 1]);
            out[q] = ADD ? out[q] + sum : sum;
        }
    }
}

// Twice as many samples: two taps each for the even and the odd ones.
template <bool ADD, class F>
void interleave(
    F* __restrict y, const F* __restrict even, const F* __restrict odd, const F* we, const F* wo, int64_t pairs) {
    const F e0 = we[0], e1 = we[1], o0 = wo[0], o1 = wo[1];
    for (int64_t q = 0; q < pairs; q++) {
        const F a = e0 * even[q] + e1 * even[q + 1], b = o0 * odd[q] + o1 * odd[q + 1];
        y[2 * q] = ADD ? y[2 * q] + a : a;
        y[2 * q + 1] = ADD ? y[2 * q + 1] + b : b;
    }
}

template <class T>
T* aligned(T* pointer) {  // at or after `pointer`, at most 32 bytes on
    while (reinterpret_cast<uintptr_t>(pointer) % 32) pointer++;
    return pointer;
}

// The horizontal filter, and some rows for it to work on, each between margins of zeros.
template <class F>
class Horizontal {
public:
    Horizontal(const Axis& axis, const F* taps, int64_t tap_rows, int64_t channels, int64_t rows)
        : axis_(axis), channels_(channels) {
        const int64_t phases = axis.phases();
        int64_t low = 0, high = axis.size;
        for (int64_t phase = 0; phase < std::min(phases, axis.out_size); phase++) {
            const int64_t last = phase + (axis.out_size - 1 - phase) / phases * phases;
            low = std::min(low, axis.start(phase));
            high = std::max(high, axis.start(last) + axis.count(last));
            starts_.push_back(axis.start(phase));
            counts_.push_back(axis.count(phase));
            offsets_.push_back(weights_.size());
            for (int64_t row = 0; row < tap_rows; row++)
                for (int64_t m = 0; m < counts_.back(); m++)
                    weights_.push_back(taps[row * axis.taps + axis.first_tap(phase) + m * axis.up]);
        }
        stride_ = ((high - low) * channels + 15) / 16 * 16;
        buffer_.assign(rows * stride_ + 16, F(0));
        rows_ = aligned(buffer_.data() - low * channels);
    }

    F* row(int64_t number) { return rows_ + number * stride_; }  // [size, channels], to be filled

    // y [out_size, channels] (+)= the filter's row `row` applied to this row.
    void apply(F* y, int64_t number, int64_t row, bool add) {
        row_ = rows_ + number * stride_;
        if (channels_ > 1) return apply_channels(y, row, add);
        const int64_t phases = axis_.phases(), step = axis_.step(), n = axis_.out_size;
        if (phases == 1 && step == 1) return add ? slide_one<1, true>(y, row) : slide_one<1, false>(y, row);
        if (phases == 1 && step == 2 && counts_[0] == 4) {
            const F *t = row_ + starts_[0], *w = weights(0, row);
            return add ? halve<true>(y, t, w, n) : halve<false>(y, t, w, n);
        }
        if (phases == 1 && step == 2) return add ? slide_one<2, true>(y, row) : slide_one<2, false>(y, row);
        if (phases == 2 && step == 1 && n > 1 && counts_[0] == 2 && counts_[1] == 2) {
            const F *even = row_ + starts_[0], *odd = row_ + starts_[1], *we = weights(0, row), *wo = weights(1, row);
            add ? interleave<true>(y, even, odd, we, wo, n / 2) : interleave<false>(y, even, odd, we, wo, n / 2);
            if (n % 2) {
                const F last = we[0] * even[n / 2] + we[1] * even[n / 2 + 1];
                y[n - 1] = add ? y[n - 1] + last : last;
            }
            return;
        }
        for (int64_t phase = 0; phase < std::min(phases, n); phase++) {
            const F* w = weights(phase, row);
            const F* t = row_ + starts_[phase];
            for (int64_t o = phase; o < n; o += phases, t += step) {
                F sum = 0;
                for (int64_t m = 0; m < counts_[phase]; m++) sum += w[m] * t[m];
                y[o] = add ? y[o] + sum : sum;
            }
        }
    }

private:
    const F* weights(int64_t phase, int64_t row) const {
        return weights_.data() + offsets_[phase] + row * counts_[phase];
    }

    template <int STEP, bool ADD>
    void slide_one(F* y, int64_t row) {
        slide<STEP, ADD>(y, row_ + starts_[0], weights(0, row), counts_[0], axis_.out_size);
    }

    void apply_channels(F* y, int64_t row, bool add) {
        const int64_t phases = axis_.phases(), step = axis_.step();
        // Without a change of size all pixels of the row are one vector, else one pixel is.
        const bool whole = phases == 1 && step == 1;
        const int64_t pixels = whole ? 1 : axis_.out_size, n = whole ? axis_.out_size * channels_ : channels_;
        for (int64_t o = 0; o < pixels; o++) {
            const int64_t phase = o % phases, count = counts_[phase];
            pointers_.resize(count + 1);  // data() of a vector without elements may be null
            const F* t = row_ + (starts_[phase] + o / phases * step) * channels_;
            for (int64_t m = 0; m < count; m++) pointers_[m] = t + m * channels_;
            combine(y + o * channels_, pointers_.data(), weights(phase, row), count, n, add);
        }
    }

    Axis axis_;
    int64_t channels_;
    std::vector<int64_t> starts_, counts_, offsets_;
    std::vector<F> weights_, buffer_;
    std::vector<const F*> pointers_;
    int64_t stride_;
    F *rows_, *row_ = nullptr;
};

// Rows of x in the precision of the computation: as they lie, or the last few of them converted.
template <class T>
class Rows {
public:
    using F = typename Compute<T>::type;
    Rows(const T* x, int64_t length, int64_t slots)
        : x_(x), length_(length), slots_(slots), owner_(slots, -1), buffer_(is_copy() ? slots * length : 1) {}

    const F* operator[](int64_t row) {
        if (!is_copy()) return load(x_ + row * length_, buffer_.data(), length_);
        const int64_t slot = row % slots_;
        F* copy = buffer_.data() + slot * length_;
        if (owner_[slot] != row) {
            load(x_ + row * length_, copy, length_);
            owner_[slot] = row;
        }
        return copy;
    }

private:
    static constexpr bool is_copy() { return sizeof(T) < sizeof(F); }
    const T* x_;
    int64_t length_, slots_;
    std::vector<int64_t> owner_;
    std::vector<F> buffer_;
};

template <class T>
struct Job {
    using F = typename Compute<T>::type;
    T* y;
    const T* x;
    int64_t planes, channels;  // channels 1 where they are planes
    Axis vertical, horizontal;
    std::vector<F> column, row;  // of a separable filter: its taps along y and x
    std::vector<F> taps;         // else [vertical.taps, horizontal.taps]

    // Where the rows of a plane's result come from: known once for all planes.
    struct Line {
        int64_t start, count;  // rows of x
        int64_t tap;           // of the filter, for the first of them
    };
    std::vector<Line> lines() const {
        std::vector<Line> result;
        for (int64_t out = 0; out < vertical.out_size; out++) {
            const int64_t start = vertical.start(out), first = std::max<int64_t>(start, 0);
            const int64_t end = std::min(start + vertical.count(out), vertical.size);
            const int64_t tap = vertical.first_tap(out) + (first - start) * vertical.up;
            result.push_back({first, std::max<int64_t>(end - first, 0), tap});
        }
        return result;
    }

    void run() const {
        const int64_t out_height = vertical.out_size, out_length = horizontal.out_size * channels;
        const int64_t length = horizontal.size * channels;
        const bool streams = can_stream(y, out_length, planes * out_height * out_length);
        const std::vector<Line> plan = lines();
        const int64_t grain = std::max<int64_t>(1, 32768 / (length + out_length));
        at::parallel_for(0, planes * out_height, grain, [&](int64_t begin, int64_t end) {
            // One filter for several rows, then the other: a row that was written a moment ago is slow to read, until
            // it has got from the queue of stores to the cache, which writing around the caches delays further.
            const int64_t group = std::max<int64_t>(1, std::min<int64_t>(4, 2048 / length));
            Worker worker(*this, plan, group);
            std::vector<T> space(group * out_length + 32);
            T* staged = aligned(space.data());
            for (int64_t line = begin; line < end; line += group) {
                const int64_t n = std::min(group, end - line);
                T* to = y + line * out_length;
                worker.run(streams ? staged : to, line, n);
                if (streams) stream(to, staged, n * out_length);
            }
            if (streams) finish_streams();
        });
    }

private:
    // What one thread needs.
    class Worker {
    public:
        Worker(const Job& job, const std::vector<Line>& plan, int64_t group)
            : job_(job),
              plan_(plan),
              most_(job.vertical.taps / job.vertical.up + 1),
              length_(job.horizontal.size * job.channels),
              filter_(
                  job.horizontal, job.taps.empty() ? job.row.data() : job.taps.data(),
                  job.taps.empty() ? 1 : job.vertical.taps, job.channels, group),
              rows_(job.x, length_, most_ + 1),
              pointers_(most_),
              weights_(most_),
              buffer_(job.horizontal.out_size * job.channels) {}

        // `to` = n rows of the result, from `line` on, counted over all planes.
        void run(T* to, int64_t line, int64_t n) {
            const bool separable = job_.taps.empty();
            const int64_t out_length = buffer_.size();
            for (int64_t i = 0; separable && i < n; i++) {
                const int64_t found = find_rows(line + i);
                combine(filter_.row(i), pointers_.data(), weights_.data(), found, length_, false);
            }
            for (int64_t i = 0; i < n; i++, to += out_length) {
                F* result = target(to, buffer_.data());
                if (separable) {
                    filter_.apply(result, i, 0, false);
                } else {
                    run_by_taps(result, line + i);
                }
                store(to, result, out_length);
            }
        }

    private:
        // Fills pointers_ with the rows of x that the line comes from, and weights_; returns how many.
        int64_t find_rows(int64_t line) {
            const int64_t out_height = job_.vertical.out_size, plane = line / out_height;
            const auto [start, found, tap] = plan_[line - plane * out_height];
            for (int64_t m = 0; m < found; m++) {
                pointers_[m] = rows_[plane * job_.vertical.size + start + m];
                if (job_.taps.empty()) weights_[m] = job_.column[tap + m * job_.vertical.up];
            }
            return found;
        }

        void run_by_taps(F* result, int64_t line) {
            const int64_t found = find_rows(line), tap = plan_[line % job_.vertical.out_size].tap;
            if (found == 0) std::fill(result, result + buffer_.size(), F(0));
            for (int64_t m = 0; m < found; m++) {
                std::copy(pointers_[m], pointers_[m] + length_, filter_.row(0));
                filter_.apply(result, 0, tap + m * job_.vertical.up, m > 0);
            }
        }

        const Job& job_;
        const std::vector<Line>& plan_;
        int64_t most_, length_;
        Horizontal<F> filter_;
        Rows<T> rows_;
        std::vector<const F*> pointers_;
        std::vector<F> weights_, buffer_;
    };
};

}  // namespace

// y and x are dense. `column` and `row` are the taps of a separable filter; else `taps` are all of them, row by row.
// axes: height, width, out_height, out_width, up_y, up_x, down_y, down_x, pad_y, pad_x, taps_y, taps_x; the padding is
// that before the first sample. Returns 0, or 1 for a dtype it doesn't know.
extern "C" int ops_upfirdn2d_cpu(
    int dtype, void* y, const void* x, int64_t planes, int64_t channels, const int64_t* axes, const double* column,
    const double* row, const double* taps) {
    const Axis vertical{axes[0], axes[2], axes[4], axes[6], axes[8], axes[10]};
    const Axis horizontal{axes[1], axes[3], axes[5], axes[7], axes[9], axes[11]};
    auto call = [&](auto example) {
        using T = decltype(example);
        Job<T> job{static_cast<T*>(y), static_cast<const T*>(x), planes, channels, vertical, horizontal, {}, {}, {}};
        if (taps != nullptr) {
            job.taps.assign(taps, taps + vertical.taps * horizontal.taps);
        } else {
            job.column.assign(column, column + vertical.taps);
            job.row.assign(row, row + horizontal.taps);
        }
        job.run();
        return 0;
    };
    switch (dtype) {
        case FLOAT32: return call(float());
        case FLOAT64: return call(double());
        case FLOAT16: return call(Half());
        case BFLOAT16: return call(BFloat());
        default: return 1;
    }
}
