// What a CPU does for a few tokens at a time, each in one pass over memory: matrix products, attention to keys in pages,
// and what stands between them, by one team of threads from the first layer to the last. Streams are fp32.
//
// No result depends on what else is computed with it: each is summed in an order that its own sizes give.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention.h"
#include "blend.h"
#include "lanes.h"

namespace {

#ifdef __AVX512F__
constexpr int MOST = 12;  // tokens of a tile: 2 x 12 sums, 2 weights and an input fit into 32 registers
#else
constexpr int MOST = 6;  // 2 x 6 sums, 2 weights and an input fit into 16
#endif
constexpr int PANEL = 2 * LANES;  // outputs whose weights lie together
constexpr int64_t DEPTH = 512;  // inputs that are summed up before their sum is added to that of others
constexpr int64_t RESIDENT = 8 * MOST;  // tokens whose inputs stay in a cache while all weights pass by

// One of a program: SLOTS integers, the first of which says what is to be done (codes.py).
struct Instruction {
    int64_t slots[SLOTS];

    int64_t n(int i) const { return slots[i]; }
    float real(int i) const { return from_bits(uint32_t(slots[i])); }
    template <class T = const float>
    T* at(int i) const { return reinterpret_cast<T*>(slots[i]); }
};

// ---- what all threads of a team do together; each loop ends when all of it is done

// C tokens, P panels of weights [inputs, PANEL]: of DEPTH inputs at most, into y or added to it.
template <class Weight, int P, int C>
void tile(const Weight* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t depth, float* y,
          int64_t y_stride, bool first) {
    Wide sums[C][2 * P] = {};
    for (int64_t k = 0; k < depth; ++k) {
        Wide weights[2 * P];
        for (int p = 0; p < P; ++p) {
            weights[2 * p] = load(w + p * w_stride + k * PANEL);
            weights[2 * p + 1] = load(w + p * w_stride + k * PANEL + LANES);
        }
        for (int c = 0; c < C; ++c) {
            const Wide input = all(x[c * x_stride + k]);
            for (int i = 0; i < 2 * P; ++i) sums[c][i] += weights[i] * input;
        }
    }
    for (int c = 0; c < C; ++c)
        for (int i = 0; i < 2 * P; ++i) {
            float* to = y + c * y_stride + i * LANES;
            store(to, first ? sums[c][i] : load(to) + sums[c][i]);
        }
}

// As tile, of `tokens` up to MOST.
template <class Weight, int P, int C = MOST>
void tiles(int64_t tokens, const Weight* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t depth,
           float* y, int64_t y_stride, bool first) {
    if constexpr (C > 0) {
        if (tokens == C) return tile<Weight, P, C>(w, w_stride, x, x_stride, depth, y, y_stride, first);
        tiles<Weight, P, C - 1>(tokens, w, w_stride, x, x_stride, depth, y, y_stride, first);
    }
}

// y = x W^T + b of x [tokens, inputs]; the weights [outputs, inputs] lie in panels [outputs / PANEL, inputs, PANEL]. A
// last panel that the outputs do not fill lies apart, in `rest`.
template <class Weight>
void linear(const Weight* w, const Weight* rest, const float* bias, const float* x, float* y, int64_t tokens,
            int64_t inputs, int64_t outputs) {
    const int64_t whole = outputs / PANEL;
    for (int64_t first = 0; first < tokens; first += RESIDENT) {
        const int64_t count = std::min(RESIDENT, tokens - first);
        const int64_t rounds = (count + MOST - 1) / MOST;
        // Few tokens leave registers for two panels, and need both to hide how long a sum takes.
        const int64_t step = count <= 2 ? 2 : 1, groups = (whole + step - 1) / step;
#pragma omp for schedule(dynamic, 2)
        for (int64_t group = 0; group < groups + (rest != nullptr); ++group) {
            const int64_t panel = std::min(group * step, whole);
            const bool two = panel + 1 < std::min(panel + step, whole);
            const Weight* weights = panel < whole ? w + panel * inputs * PANEL : rest;
            const int64_t width = (two ? 2 : 1) * PANEL;
            float room[2 * PANEL * MOST];
            for (int64_t round = 0; round < rounds; ++round) {
                const int64_t begin = count * round / rounds, here = count * (round + 1) / rounds - begin;
                for (int64_t k = 0; k < inputs; k += DEPTH) {
                    const Weight* from = weights + k * PANEL;
                    const float* in = x + (first + begin) * inputs + k;
                    const int64_t depth = std::min(DEPTH, inputs - k);
                    if (two)
                        tiles<Weight, 2, 2>(here, from, inputs * PANEL, in, inputs, depth, room, width, k == 0);
                    else
                        tiles<Weight, 1>(here, from, 0, in, inputs, depth, room, width, k == 0);
                }
                for (int64_t c = 0; c < here; ++c) {
                    float* to = y + (first + begin + c) * outputs + panel * PANEL;
                    const int64_t end = std::min(width, outputs - panel * PANEL);
                    for (int64_t i = 0; i < end; ++i)
                        to[i] = room[c * width + i] + (bias ? bias[panel * PANEL + i] : 0.0f);
                }
            }
        }
    }
}

template <class Weight>
void linear(const Instruction& i, int64_t tokens) {
    linear(i.at<const Weight>(2), i.at<const Weight>(3), i.at(4), i.at(5), i.at<float>(6), tokens, i.n(7), i.n(8));
}

void linear(const Instruction& i, int64_t tokens) {
    switch (i.n(1)) {
        case WEIGHT_FP32: return linear<float>(i, tokens);
        case WEIGHT_BF16: return linear<Bf16>(i, tokens);
        case WEIGHT_FP16: return linear<Fp16>(i, tokens);
    }
}

// x / sqrt(mean(x^2) + eps) * weight of rows [tokens, heads] that are `width` long and lie at strides.
void rms_norm(const float* x, int64_t tokens, int64_t token_stride, int64_t heads, int64_t head_stride, int64_t width,
              const float* weight, float eps, float* y) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < tokens * heads; ++row) {
        const float* from = x + row / heads * token_stride + row % heads * head_stride;
        float* to = y + row * width;
        Wide squares = {};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) squares += load(from + i) * load(from + i);
        float sum = total(squares);
        for (; i < width; ++i) sum += from[i] * from[i];
        const float scale = 1.0f / std::sqrt(sum / float(width) + eps);
        for (i = 0; i + LANES <= width; i += LANES) store(to + i, load(from + i) * scale * load(weight + i));
        for (; i < width; ++i) to[i] = from[i] * scale * weight[i];
    }
}

// (x - mean) / sqrt(variance + eps) * weight + bias of dense rows [tokens, width].
void layer_norm(const float* x, int64_t tokens, int64_t width, const float* weight, const float* bias, float eps,
                float* y) {
#pragma omp for schedule(static)
    for (int64_t token = 0; token < tokens; ++token) {
        const float* from = x + token * width;
        float* to = y + token * width;
        Wide sums = {}, squares = {};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) sums += load(from + i);
        float sum = total(sums);
        for (; i < width; ++i) sum += from[i];
        const float mean = sum / float(width);
        for (i = 0; i + LANES <= width; i += LANES) squares += (load(from + i) - mean) * (load(from + i) - mean);
        float square = total(squares);
        for (; i < width; ++i) square += (from[i] - mean) * (from[i] - mean);
        const float scale = 1.0f / std::sqrt(square / float(width) + eps);
        for (i = 0; i < width; ++i) to[i] = (from[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0.0f);
    }
}

// Turn queries, in place, and keys by their angles' cosines and sines [tokens, half], and write keys and values to
// their slots. Strides are those of tokens; the heads of a token are dense. Without cosines nothing is turned.
void enter(float* q, int64_t q_stride, const float* k, int64_t k_stride, const float* v, int64_t v_stride,
           int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t half, const float* cos,
           const float* sin, const int64_t* slots, float* keys, float* values) {
    const int64_t size = kv_heads * dim;
    const auto turn = [=](const float* from, float* to, int64_t token, int64_t count) {
        const float *c = cos + token * half, *s = sin + token * half;
        for (int64_t head = 0; head < count; ++head, from += dim, to += dim) {
            int64_t i = 0;
            for (; i + LANES <= half; i += LANES) {
                const Wide a = load(from + i), b = load(from + i + half);
                store(to + i, a * load(c + i) - b * load(s + i));
                store(to + i + half, b * load(c + i) + a * load(s + i));
            }
            for (; i < half; ++i) {
                const float a = from[i], b = from[i + half];
                to[i] = a * c[i] - b * s[i];
                to[i + half] = b * c[i] + a * s[i];
            }
            if (from != to) std::copy(from + 2 * half, from + dim, to + 2 * half);
        }
    };
#pragma omp for schedule(static)
    for (int64_t token = 0; token < tokens; ++token) {
        float* key = keys + slots[token] * size;
        if (cos) {
            turn(q + token * q_stride, q + token * q_stride, token, heads);
            turn(k + token * k_stride, key, token, kv_heads);
        } else {
            std::copy(k + token * k_stride, k + token * k_stride + size, key);
        }
        std::copy(v + token * v_stride, v + token * v_stride + size, values + slots[token] * size);
    }
}

template <int KIND>
inline Wide activate(Wide x) {
    if (KIND == ACTIVATION_RELU) return x > 0 ? x : (x == x ? Wide{} : x);
    if (KIND == ACTIVATION_SILU) return x / (1.0f + exponential(-x));
    if (KIND == ACTIVATION_GELU_TANH) {
        const Wide twice = (x + x * x * x * 0.044715f) * 1.5957691216f;  // 2 sqrt(2 / pi)
        return x / (1.0f + exponential(-twice));  // (1 + tanh z) / 2 is 1 / (1 + e^-2z)
    }
    // Abramowitz and Stegun, 7.1.26: 1 - erf z = p(t) e^-z^2 for z >= 0, to 1.5e-7.
    const Wide z = (x < 0 ? -x : x) * 0.70710678f, t = 1.0f / (1.0f + z * 0.3275911f);
    Wide p = all(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Wide beyond = p * t * exponential(-z * z) * 0.5f;
    return x * (x < 0 ? beyond : 1.0f - beyond);
}

// out = act(x) * up, or without ups act(x): rows are `x_stride` apart, those of out dense.
template <int KIND>
void activated(const float* x, const float* up, int64_t x_stride, float* out, int64_t tokens, int64_t hidden) {
    constexpr int64_t part = 256;
    const int64_t parts = (hidden + part - 1) / part;
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < tokens * parts; ++unit) {
        const int64_t token = unit / parts, end = std::min(hidden, (unit % parts + 1) * part);
        const float *from = x + token * x_stride, *by = up ? up + token * x_stride : nullptr;
        float* to = out + token * hidden;
        int64_t i = unit % parts * part;
        for (; i + LANES <= end; i += LANES) {
            const Wide y = activate<KIND>(load(from + i));
            store(to + i, by ? y * load(by + i) : y);
        }
        for (; i < end; ++i) to[i] = activate<KIND>(all(from[i]))[0] * (by ? by[i] : 1.0f);
    }
}

void activated(int64_t kind, const float* x, const float* up, int64_t x_stride, float* out, int64_t tokens,
               int64_t hidden) {
    switch (kind) {
        case ACTIVATION_SILU: return activated<ACTIVATION_SILU>(x, up, x_stride, out, tokens, hidden);
        case ACTIVATION_GELU_TANH: return activated<ACTIVATION_GELU_TANH>(x, up, x_stride, out, tokens, hidden);
        case ACTIVATION_GELU: return activated<ACTIVATION_GELU>(x, up, x_stride, out, tokens, hidden);
        case ACTIVATION_RELU: return activated<ACTIVATION_RELU>(x, up, x_stride, out, tokens, hidden);
    }
}

void add(const float* a, const float* b, float* out, int64_t tokens, int64_t width) {
#pragma omp for schedule(static)
    for (int64_t token = 0; token < tokens; ++token)
        for (int64_t i = token * width; i < (token + 1) * width; ++i) out[i] = a[i] + b[i];
}

// ---- what a program says

void execute(const Instruction& i, int64_t tokens) {
    typedef const int64_t Integers;
    switch (i.n(0)) {
        case OPERATION_LINEAR: return linear(i, tokens);
        case OPERATION_RMS_NORM:
            return rms_norm(i.at(1), tokens, i.n(2), i.n(3), i.n(4), i.n(5), i.at(6), i.real(7), i.at<float>(8));
        case OPERATION_LAYER_NORM:
            return layer_norm(i.at(1), tokens, i.n(2), i.at(3), i.at(4), i.real(5), i.at<float>(6));
        case OPERATION_ENTER:
            return enter(i.at<float>(1), i.n(2), i.at(3), i.n(4), i.at(5), i.n(6), tokens, i.n(7), i.n(8), i.n(9),
                         i.n(10), i.at(11), i.at(12), i.at<Integers>(13), i.at<float>(14), i.at<float>(15));
        case OPERATION_ATTEND:
            return attend(i.at(1), i.n(2), i.at(3), i.at(4), i.at<Integers>(5), i.n(6), i.at<Integers>(7), tokens,
                          i.n(8), i.n(9), i.n(10), i.n(11), i.n(12), i.at(13), i.real(14), i.at<float>(15));
        case OPERATION_ACTIVATED: return activated(i.n(1), i.at(2), i.at(3), i.n(4), i.at<float>(5), tokens, i.n(6));
        case OPERATION_ADD: return add(i.at(1), i.at(2), i.at<float>(3), tokens, i.n(4));
    }
}

}  // namespace

extern "C" {

// Weights of how many outputs lie together.
int neoxkit_panel() { return PANEL; }

// Everything in turn, for so many tokens, by one team of threads.
void neoxkit_run(const void* program, int64_t count, int64_t tokens, int threads) {
    const Instruction* instructions = static_cast<const Instruction*>(program);
#pragma omp parallel num_threads(threads)
    for (int64_t i = 0; i < count; ++i) execute(instructions[i], tokens);
}

}  // extern "C"
