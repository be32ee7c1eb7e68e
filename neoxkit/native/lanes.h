// Numbers side by side, as wide as the processor has registers: how they are read, widened, summed up, and e^x.

#pragma once

#include <cstdint>
#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Wide __attribute__((vector_size(LANES * 4)));
typedef uint32_t WideBits __attribute__((vector_size(LANES * 4)));
typedef uint16_t HalfBits __attribute__((vector_size(LANES * 2)));

struct Bf16 { uint16_t bits; };
struct Fp16 { uint16_t bits; };

inline float widen(float x) { return x; }

inline float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline float widen(Bf16 x) { return from_bits(uint32_t(x.bits) << 16); }

inline float widen(Fp16 x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    // An exponent that is 112 too small, also where the number is subnormal.
    return from_bits(sign | rest << 13) * 0x1p112f;
}

inline Wide load(const float* at) {
    Wide x;
    std::memcpy(&x, at, sizeof x);
    return x;
}

inline Wide load(const Bf16* at) {
#if defined(__AVX512F__)
    return Wide(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))), 16));
#elif defined(__AVX2__)
    return Wide(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))), 16));
#else
    HalfBits x;
    std::memcpy(&x, at, sizeof x);
    return Wide(__builtin_convertvector(x, WideBits) << 16);
#endif
}

inline Wide load(const Fp16* at) {
#if defined(__AVX512F__)
    return Wide(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))));
#elif defined(__F16C__)
    return Wide(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
#else
    Wide x;
    for (int lane = 0; lane < LANES; ++lane) x[lane] = widen(at[lane]);
    return x;
#endif
}

inline void store(float* at, Wide x) { std::memcpy(at, &x, sizeof x); }

inline Wide all(float x) { return x - Wide{}; }  // no subtraction is left of it

inline float total(Wide x) {
#if defined(__AVX512F__)
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(__m512(x)),
                                _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(__m512(x)), 1)));
#elif defined(__AVX__)
    __m256 half = __m256(x);
#endif
#ifdef __AVX__
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
#else
    float sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += x[lane];
    return sum;
#endif
}

// e^x = 2^n e^r with |r| <= ln 2 / 2, e^r by Taylor's polynomial, whose remainder is r^8 / 8! < 6e-9. NaN stays NaN.
inline Wide exponential(Wide x) {
    const Wide low = all(-87.0f), high = all(88.0f), magic = all(0x1.8p23f);
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Wide shifted = x * 1.44269504f + magic;  // its last bits are n
    const Wide n = shifted - magic;
    const Wide r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Wide e = all(1.0f / 5040);
    e = e * r + 1.0f / 720;
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    return e * Wide((WideBits(shifted) + 127) << 23);
}
