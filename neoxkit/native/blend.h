// The greedy blend of sources, as Megatron's and gpt-neox's build_blending_indices has it.

#pragma once

#include <cstdint>

// Rows first to first + rows: each of the source that is furthest behind its weight, the first of equals. `counts` is
// how many rows of each source came before, and is counted on.
extern "C" void neoxkit_blend(const double* weights, int64_t sources, int64_t first, int64_t rows, int64_t* counts,
                              uint16_t* source, int64_t* index) {
    for (int64_t row = first; row < first + rows; ++row) {
        const double place = double(row > 1 ? row : 1);
        int64_t best = 0;
        double most = 0;
        for (int64_t i = 0; i < sources; ++i) {
            // A fused product and difference would round once, and choose otherwise now and then.
            const volatile double due = weights[i] * place;
            const double behind = due - double(counts[i]);
            if (i == 0 || behind > most) most = behind, best = i;
        }
        *source++ = uint16_t(best);
        *index++ = counts[best]++;
    }
}
