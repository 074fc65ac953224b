// The transforms of a 3x3 convolution by minimal filtering, on the processor (Winograd; Lavin and Gray, arXiv
// 1509.09308, section 4.3). Along an axis, 4 results take 6 multiplications in place of 12; in both,
//
//     results [4, 4] = A^T [(G weights G^T) * (B^T samples B)] A,  36 products of matrices in place of 144.
//
// torch multiplies the matrices, which sums over channels. Here, images [N, height, width, C] are cut into tiles that
// become [36, tiles, C], and back. Channels are innermost, so that a vector holds some of them.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace {

constexpr int TILE = 4, SAMPLES = 6;  // along an axis: results, and what they are made of
constexpr int BYTES = 32;             // of a vector

template <int R, int C>
struct Matrix {
    double at[R][C];
};

// B^T and A^T by Toom and Cook (Blahut, Fast Algorithms for Signal Processing, chapter 5) from these points and
// infinity; conv3x3_native.py makes G. Rounding errors are as small as those of a plain sum: ten times below those of
// the points 0, 1, -1, 2, -2.
constexpr double POINTS[SAMPLES - 1] = {0, 0.75, -0.75, 1.5, -1.5};

// A row holds the coefficients of the product of (x - p) over all other points.
constexpr Matrix<SAMPLES, SAMPLES> make_input() {
    Matrix<SAMPLES, SAMPLES> result{};
    for (int row = 0; row < SAMPLES; row++) {
        result.at[row][0] = 1;
        int degree = 0;
        for (int other = 0; other < SAMPLES - 1; other++) {
            if (other == row) continue;
            for (int i = ++degree; i >= 0; i--)
                result.at[row][i] = (i > 0 ? result.at[row][i - 1] : 0) - POINTS[other] * result.at[row][i];
        }
    }
    return result;
}

// A column holds the powers of a point.
constexpr Matrix<TILE, SAMPLES> make_output() {
    Matrix<TILE, SAMPLES> result{};
    for (int column = 0; column < SAMPLES - 1; column++) {
        double power = 1;
        for (int i = 0; i < TILE; i++, power *= POINTS[column]) result.at[i][column] = power;
    }
    result.at[TILE - 1][SAMPLES - 1] = 1;
    return result;
}

template <int R, int C>
constexpr Matrix<C, R> transpose(const Matrix<R, C>& m) {
    Matrix<C, R> result{};
    for (int i = 0; i < R; i++)
        for (int j = 0; j < C; j++) result.at[j][i] = m.at[i][j];
    return result;
}

constexpr Matrix<SAMPLES, SAMPLES> INPUT = make_input();          // B^T
constexpr Matrix<TILE, SAMPLES> OUTPUT = make_output();           // A^T
constexpr Matrix<SAMPLES, TILE> GRADIENT = transpose(make_output());  // A, for gradients of results

template <class F>
struct Lanes {
    static constexpr int64_t COUNT = BYTES / sizeof(F);
    typedef F Vector __attribute__((vector_size(BYTES)));
    typedef F Anywhere __attribute__((vector_size(BYTES), aligned(sizeof(F))));
    static Vector load(const F* from) { return *reinterpret_cast<const Anywhere*>(from); }
    static void store(F* to, Vector values) { *reinterpret_cast<Anywhere*>(to) = values; }
};

// sum of M[ROW][i] * in[i * STEP], spelt out: zeros and ones of M cost nothing.
template <const auto& M, int ROW, int STEP, class F, class V, int I = 0>
inline __attribute__((always_inline)) void add_row(const V* in, V& sum, bool is_first) {
    if constexpr (I < int(sizeof(M.at[0]) / sizeof(double))) {
        constexpr double factor = M.at[ROW][I];
        if constexpr (factor != 0) {
            const V term = factor == 1 ? in[I * STEP] : F(factor) * in[I * STEP];
            sum = is_first ? term : sum + term;
            is_first = false;
        }
        add_row<M, ROW, STEP, F, V, I + 1>(in, sum, is_first);
    }
}

// out = M in, elements of both STEP apart.
template <const auto& M, int STEP, class F, class V, int... ROW>
inline __attribute__((always_inline)) void multiply(const V* in, V* out, std::integer_sequence<int, ROW...>) {
    (add_row<M, ROW, STEP, F>(in, out[ROW * STEP], true), ...);
}

struct Job {
    int64_t height, width, channels;
    int64_t first, count;  // tiles at work, counted over all images

    int64_t stride() const { return count * channels; }  // from one product to the next

    int64_t across() const { return (width + TILE - 1) / TILE; }
    int64_t down() const { return (height + TILE - 1) / TILE; }
    // Where tile `number` of this job lies: elements before its image, and its first row and column.
    int64_t image(int64_t number) const { return (first + number) / (across() * down()) * height * width * channels; }
    int64_t top(int64_t number) const { return (first + number) / across() % down() * TILE; }
    int64_t left(int64_t number) const { return (first + number) % across() * TILE; }
};

// products[36][tile][channel] = M t M^T of the tiles t of x; of IN x IN pixels from `before` their corner on, zeros
// where there is no image.
template <const auto& M, int IN, class F>
void gather(F* products, const F* x, const Job& job, int64_t before) {
    using L = Lanes<F>;
    using V = typename L::Vector;
    constexpr auto rows = std::make_integer_sequence<int, SAMPLES>();
    at::parallel_for(0, job.count, 16, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; tile++) {
            const F* image = x + job.image(tile);
            const int64_t top = job.top(tile) - before, left = job.left(tile) - before;
            const int64_t first = std::max<int64_t>(0, -top), last = std::min<int64_t>(IN, job.height - top);
            for (int64_t c = 0; c < job.channels; c += L::COUNT) {
                V half[SAMPLES * IN] = {}, column[IN] = {};
                for (int64_t j = std::max<int64_t>(0, -left); j < std::min<int64_t>(IN, job.width - left); j++) {
                    const F* pixel = image + ((top + first) * job.width + left + j) * job.channels + c;
                    for (int64_t i = first; i < last; i++, pixel += job.width * job.channels)
                        column[i] = L::load(pixel);
                    V results[SAMPLES];
                    multiply<M, 1, F>(column, results, rows);
                    for (int i = 0; i < SAMPLES; i++) half[i * IN + j] = results[i];
                }
                F* to = products + tile * job.channels + c;
                for (int64_t i = 0; i < SAMPLES; i++) {
                    V results[SAMPLES];
                    multiply<M, 1, F>(half + i * IN, results, rows);
                    for (int64_t j = 0; j < SAMPLES; j++, to += job.stride()) L::store(to, results[j]);
                }
            }
        }
    });
}

// y's tiles = A^T p A of the products p[36][tile][channel].
template <class F>
void scatter(F* y, const F* products, const Job& job) {
    using L = Lanes<F>;
    using V = typename L::Vector;
    constexpr auto rows = std::make_integer_sequence<int, TILE>();
    at::parallel_for(0, job.count, 16, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; tile++) {
            F* image = y + job.image(tile);
            const int64_t top = job.top(tile), left = job.left(tile);
            const int64_t height = std::min<int64_t>(TILE, job.height - top);
            const int64_t width = std::min<int64_t>(TILE, job.width - left);
            for (int64_t c = 0; c < job.channels; c += L::COUNT) {
                const F* from = products + tile * job.channels + c;
                V whole[SAMPLES * SAMPLES], half[TILE * SAMPLES];
                for (int64_t i = 0; i < SAMPLES * SAMPLES; i++, from += job.stride()) whole[i] = L::load(from);
                for (int64_t j = 0; j < SAMPLES; j++) multiply<OUTPUT, SAMPLES, F>(whole + j, half + j, rows);
                for (int64_t i = 0; i < height; i++) {
                    V results[TILE];
                    multiply<OUTPUT, 1, F>(half + i * SAMPLES, results, rows);
                    F* to = image + ((top + i) * job.width + left) * job.channels + c;
                    for (int64_t j = 0; j < width; j++, to += job.channels) L::store(to, results[j]);
                }
            }
        }
    });
}

enum Transform { TO_PRODUCTS, GRADIENT_TO_PRODUCTS, TO_RESULTS };

template <class F>
int run(int transform, void* to, const void* from, const Job& job) {
    F* result = static_cast<F*>(to);
    const F* x = static_cast<const F*>(from);
    switch (transform) {
        case TO_PRODUCTS: return gather<INPUT, SAMPLES>(result, x, job, 1), 0;
        case GRADIENT_TO_PRODUCTS: return gather<GRADIENT, TILE>(result, x, job, 0), 0;
        case TO_RESULTS: return scatter(result, x, job), 0;
        default: return 1;
    }
}

}  // namespace

// Images [N, height, width, channels] to products [36, count, channels], or back; sizes: height, width, channels (a
// multiple of 32 bytes), first, count. Returns 0, or 1 for a dtype (0: float, 1: double) or
// transform that it doesn't know.
extern "C" int ops_conv3x3_cpu(int dtype, int transform, void* to, const void* from, const int64_t* sizes) {
    const Job job{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
    if (dtype == 0) return run<float>(transform, to, from, job);
    return dtype == 1 ? run<double>(transform, to, from, job) : 1;
}
