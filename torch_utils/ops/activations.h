// The activations of bias_act.py with their first and second derivatives: one definition for the processor and the GPU.
//
// u = x + b, v = gain * act(u), y = clamp(v). A kernel computes one of
//   forward   y
//   slope     dy * dv/du, zero where y is clamped
//   curvature ddx * dy * d2v/du2, zero where y is clamped
// `Math` supplies exp, expm1, sigmoid and softplus in the precision of the computation.
#pragma once

#ifdef __CUDACC__
#define OPS_BOTH __host__ __device__ __forceinline__
#else
#define OPS_BOTH inline __attribute__((always_inline))
#endif

namespace ops {

enum Act { LINEAR, RELU, LRELU, TANH, SIGMOID, ELU, SELU, SOFTPLUS, SWISH };  // the order of bias_act.py's table
enum Order { FORWARD, SLOPE, CURVATURE };
enum Dtype { FLOAT32, FLOAT64, FLOAT16, BFLOAT16 };  // the order of DTYPES in native.py

// selu (arXiv 1706.02515, equation 2): SELU_SCALE * elu with the part below zero times SELU_ALPHA
constexpr double SELU_SCALE = 1.0507009873554804934193349852946;
constexpr double SELU_ALPHA = 1.6732632423543772848170429916717;

// linear, relu and lrelu are one function, whose slope is known from the sign of the result.
OPS_BOTH constexpr bool is_piecewise(int act) { return act <= LRELU; }

template <class F>
struct Parameters {
    F alpha;  // slope below zero of a piecewise linear activation
    F gain;
    F clamp;  // infinity: none
};

// A NaN passes, and minus infinity becomes zero where alpha is zero.
template <class F>
OPS_BOTH F piecewise(F u, F alpha) {
    F below = alpha == F(0) ? F(0) : alpha * u;
    return u < F(0) ? below : u;
}

template <int ACT, class Math, class F>
OPS_BOTH F value(F u, F alpha) {
    if (ACT == TANH) {
        F e = Math::expm1(F(2) * u);
        return e / (e + F(2));
    }
    if (ACT == SIGMOID) return Math::sigmoid(u);
    if (ACT == ELU) return u > F(0) ? u : Math::expm1(u);
    if (ACT == SELU) return F(SELU_SCALE) * (u > F(0) ? u : F(SELU_ALPHA) * Math::expm1(u));
    if (ACT == SOFTPLUS) return Math::softplus(u);
    if (ACT == SWISH) return u * Math::sigmoid(u);
    return piecewise(u, alpha);
}

template <int ACT, class Math, class F>
OPS_BOTH F slope(F u, F alpha) {
    if (ACT == TANH) {
        F t = value<TANH, Math>(u, alpha);
        return (F(1) - t) * (F(1) + t);
    }
    if (ACT == SIGMOID) return Math::sigmoid(u) * Math::sigmoid(-u);
    if (ACT == ELU) return u > F(0) ? F(1) : Math::exp(u);
    if (ACT == SELU) return F(SELU_SCALE) * (u > F(0) ? F(1) : F(SELU_ALPHA) * Math::exp(u));
    if (ACT == SOFTPLUS) return Math::sigmoid(u);
    if (ACT == SWISH) {
        F s = Math::sigmoid(u);
        return s + u * s * Math::sigmoid(-u);
    }
    return u > F(0) ? F(1) : alpha;
}

template <int ACT, class Math, class F>
OPS_BOTH F curvature(F u, F alpha) {
    if (ACT == TANH) {
        F t = value<TANH, Math>(u, alpha);
        return F(-2) * t * (F(1) - t) * (F(1) + t);
    }
    if (ACT == ELU) return u >= F(0) ? F(0) : Math::exp(u);
    if (ACT == SELU) return u >= F(0) ? F(0) : F(SELU_SCALE * SELU_ALPHA) * Math::exp(u);
    F s = Math::sigmoid(u), t = Math::sigmoid(-u);
    if (ACT == SIGMOID) return s * t * (t - s);
    if (ACT == SOFTPLUS) return s * t;
    if (ACT == SWISH) return s * t * (F(2) + u * (t - s));
    return F(0);
}

template <class F>
OPS_BOTH F clamped(F v, F clamp) {
    F low = v < -clamp ? -clamp : v;
    return low > clamp ? clamp : low;
}

// The two ways to one element of the result; `a` is x, dy or ddx.

// From the result y of the forward pass; piecewise linear activations with alpha >= 0.
template <class F>
OPS_BOTH F slope_from_result(F a, F y, Parameters<F> p) {
    F signed_y = p.gain < F(0) ? -y : y;
    F g = a * (signed_y > F(0) ? p.gain : p.gain * p.alpha);
    return (y >= p.clamp || y <= -p.clamp) ? F(0) : g;
}

// From u. `dy` counts for CURVATURE only.
template <int ACT, int ORDER, class Math, class F>
OPS_BOTH F from_input(F a, F dy, F u, Parameters<F> p) {
    F v = p.gain * value<ACT, Math>(u, p.alpha);
    if (ORDER == FORWARD) return clamped(v, p.clamp);
    F g = ORDER == SLOPE ? a * (p.gain * slope<ACT, Math>(u, p.alpha))
                         : a * dy * (p.gain * curvature<ACT, Math>(u, p.alpha));
    return (v >= p.clamp || v <= -p.clamp) ? F(0) : g;
}

}  // namespace ops
