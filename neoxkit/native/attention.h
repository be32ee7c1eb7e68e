// Attention of single tokens to keys and values in pages, by all threads of a team.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>

#include <omp.h>

#include "lanes.h"

namespace {

// A text's pages of keys or values, [pages, size, heads, dim].
struct Pages {
    const float* pool;
    const int64_t* table;
    int64_t size, heads, dim;

    const float* at(int64_t token) const {
        return pool + (table[token / size] * size + token % size) * heads * dim;
    }
    int64_t end(int64_t token, int64_t last) const { return std::min(last, (token / size + 1) * size); }
};

// Scores of R query heads, which share a key.
template <int R>
void score(const float* q, int64_t dim, const float* key, float scale, float* scores, int64_t stride) {
    Wide sums[R] = {};
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) {
        const Wide k = load(key + d);
        for (int r = 0; r < R; ++r) sums[r] += load(q + r * dim + d) * k;
    }
    for (int r = 0; r < R; ++r) {
        float sum = total(sums[r]);
        for (int64_t rest = d; rest < dim; ++rest) sum += q[r * dim + rest] * key[rest];
        scores[r * stride] = sum * scale;
    }
}

// Scores of one query head with K keys, which lie `row` apart: as many sums at once hide how long one takes.
template <int K>
void score_alone(const float* q, int64_t dim, const float* key, int64_t row, float scale, float* scores) {
    Wide sums[K] = {};
    int64_t d = 0;
    for (; d + LANES <= dim; d += LANES) {
        const Wide query = load(q + d);
        for (int k = 0; k < K; ++k) sums[k] += query * load(key + k * row + d);
    }
    for (int k = 0; k < K; ++k) {
        float sum = total(sums[k]);
        for (int64_t rest = d; rest < dim; ++rest) sum += q[rest] * key[k * row + rest];
        scores[k] = sum * scale;
    }
}

void score(int64_t shared, const float* q, int64_t dim, const float* key, float scale, float* scores,
           int64_t stride) {
    for (; shared >= 4; shared -= 4, q += 4 * dim, scores += 4 * stride) score<4>(q, dim, key, scale, scores, stride);
    switch (shared) {
        case 3: return score<3>(q, dim, key, scale, scores, stride);
        case 2: return score<2>(q, dim, key, scale, scores, stride);
        case 1: return score<1>(q, dim, key, scale, scores, stride);
    }
}

// Softmax of `count` scores in place; there is room up to the next multiple of LANES.
void softmax(float* scores, int64_t count) {
    const int64_t padded = (count + LANES - 1) / LANES * LANES;
    std::fill(scores + count, scores + padded, -INFINITY);
    Wide highest = load(scores);
    for (int64_t i = LANES; i < padded; i += LANES) {
        const Wide next = load(scores + i);
        highest = next > highest ? next : highest;
    }
    float most = highest[0];
    for (int lane = 1; lane < LANES; ++lane) most = highest[lane] > most ? highest[lane] : most;
    Wide sums = {};
    for (int64_t i = 0; i < padded; i += LANES) {
        const Wide x = load(scores + i), e = exponential(x - most);
        const Wide weight = x == -INFINITY ? Wide{} : e;
        sums += weight;
        store(scores + i, weight);
    }
    const float scale = 1.0f / total(sums);
    for (int64_t i = 0; i < padded; i += LANES) store(scores + i, load(scores + i) * scale);
}

// Adds the values of `count` tokens, which lie `row` apart, by their weights to the mix of a query head, one after the
// other: in which runs they come changes nothing.
void mix(const float* values, int64_t row, int64_t dim, const float* weights, int64_t count, float* out) {
    constexpr int WIDE = 8;
    int64_t d = 0;
    for (; d + WIDE * LANES <= dim; d += WIDE * LANES) {
        Wide sums[WIDE];
        for (int w = 0; w < WIDE; ++w) sums[w] = load(out + d + w * LANES);
        for (int64_t i = 0; i < count; ++i) {
            const Wide weight = all(weights[i]);
            for (int w = 0; w < WIDE; ++w) sums[w] += weight * load(values + i * row + d + w * LANES);
        }
        for (int w = 0; w < WIDE; ++w) store(out + d + w * LANES, sums[w]);
    }
    for (; d + LANES <= dim; d += LANES) {
        Wide sum = load(out + d);
        for (int64_t i = 0; i < count; ++i) sum += all(weights[i]) * load(values + i * row + d);
        store(out + d, sum);
    }
    for (; d < dim; ++d)
        for (int64_t i = 0; i < count; ++i) out[d] += weights[i] * values[i * row + d];
}

// Key heads from `begin` to `end` of one text, with all query heads that share them: `shared` each.
void attend_text(const float* q, const Pages& keys, const Pages& values, int64_t begin, int64_t end, int64_t shared,
                 int64_t first, int64_t last, const float* slopes, float scale, float* scores, float* out) {
    const int64_t dim = keys.dim, row = keys.heads * dim, stride = (last - first + LANES - 1) / LANES * LANES;
    for (int64_t token = first; token < last;) {
        const float* key = keys.at(token);
        const int64_t stop = keys.end(token, last);
        for (; shared == 1 && token + 8 <= stop; token += 8, key += 8 * row)
            for (int64_t head = begin; head < end; ++head)
                score_alone<8>(q + head * dim, dim, key + head * dim, row, scale,
                               scores + (head - begin) * stride + token - first);
        for (; token < stop; ++token, key += row)
            for (int64_t head = begin; head < end; ++head)
                score(shared, q + head * shared * dim, dim, key + head * dim, scale,
                      scores + (head - begin) * shared * stride + token - first, stride);
    }
    for (int64_t head = begin * shared; head < end * shared; ++head) {
        float* weights = scores + (head - begin * shared) * stride;
        if (slopes)
            for (int64_t token = first; token < last; ++token)
                weights[token - first] -= slopes[head] * float(last - 1 - token);
        softmax(weights, last - first);
    }
    std::fill(out + begin * shared * dim, out + end * shared * dim, 0.0f);
    for (int64_t token = first; token < last;) {
        const float* value = values.at(token);
        const int64_t stop = values.end(token, last);
        for (int64_t head = begin; head < end; ++head)
            for (int64_t each = head * shared; each < (head + 1) * shared; ++each)
                mix(value + head * dim, row, dim, scores + (each - begin * shared) * stride + token - first,
                    stop - token, out + each * dim);
        token = stop;
    }
}

// Attention of one token of each text to all before it, or the last `window` of them where that is not 0. Text n is
// lengths[n] tokens long, in the pages tables[n]. Queries lie at strides; out is [texts, heads, dim].
void attend(const float* q, int64_t q_stride, const float* keys, const float* values, const int64_t* tables,
            int64_t table_stride, const int64_t* lengths, int64_t texts, int64_t heads, int64_t kv_heads, int64_t dim,
            int64_t size, int64_t window, const float* slopes, float scale, float* out) {
    const int64_t shared = heads / kv_heads;
    // All heads of a text read what lies together; but every thread shall have something to do.
    const int64_t parts = texts >= 2 * omp_get_num_threads() ? 1 : kv_heads, wide = kv_heads / parts;
    const int64_t longest = *std::max_element(lengths, lengths + texts);
    const std::unique_ptr<float[]> scores(new float[wide * shared * ((longest + LANES - 1) / LANES * LANES)]);
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < texts * parts; ++unit) {
        const int64_t text = unit / parts, head = unit % parts * wide;
        const Pages k{keys, tables + text * table_stride, size, kv_heads, dim};
        const Pages v{values, k.table, size, kv_heads, dim};
        const int64_t last = lengths[text], first = window && window < last ? last - window : 0;
        attend_text(q + text * q_stride, k, v, head, head + wide, shared, first, last, slopes, scale, scores.get(),
                    out + text * heads * dim);
    }
}

}  // namespace
