// What one core can do at best: its multiply-adds a second, and the bytes a second it can read from
// a buffer of a given size. Compiled by sampler.py for the machine it runs on.
#include <time.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>

namespace {

#if defined(__AVX512F__)
constexpr std::size_t kVector = 16;
#elif defined(__AVX__)
constexpr std::size_t kVector = 8;
#else
constexpr std::size_t kVector = 4;
#endif
typedef float Vector __attribute__((vector_size(kVector * sizeof(float))));

constexpr int kRepetitions = 51;

// The time this thread has run, so that others on the machine disturb less.
double seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double median(double* values) {
    std::sort(values, values + kRepetitions);
    return values[kRepetitions / 2];
}

volatile float source = 0.5f;
volatile float sink;

}  // namespace

extern "C" double multiply_adds_per_second() {
    constexpr long kRounds = 100000;
    double taken[kRepetitions];
    for (double& time : taken) {
        // Twelve independent chains hide the latency. They are named, since not every compiler
        // keeps an array in registers, and start from numbers it cannot know, or it would see that
        // they are all the same.
        const auto unknown = [] { return Vector{} + source; };
        Vector a = unknown(), b = unknown(), c = unknown(), d = unknown(), e = unknown();
        Vector f = unknown(), g = unknown(), h = unknown(), i = unknown(), j = unknown();
        Vector k = unknown(), l = unknown();
        const Vector x = unknown(), y = unknown();
        const double start = seconds();
        for (long round = 0; round < kRounds; ++round) {
            a = a * x + y, b = b * x + y, c = c * x + y, d = d * x + y;
            e = e * x + y, f = f * x + y, g = g * x + y, h = h * x + y;
            i = i * x + y, j = j * x + y, k = k * x + y, l = l * x + y;
        }
        time = seconds() - start;
        sink = (a + b + c + d + e + f + g + h + i + j + k + l)[0];
    }
    return 12.0 * kVector * kRounds / median(taken);
}

extern "C" double bytes_per_second(std::size_t bytes) {
    const std::size_t step = 8 * kVector, count = bytes / sizeof(float) / step * step;
    auto* memory = static_cast<float*>(std::aligned_alloc(64, count * sizeof(float)));
    if (memory == nullptr) {
        return 0.0;
    }
    std::fill(memory, memory + count, 1.0f);
    Vector sum[8] = {};
    double taken[kRepetitions];
    for (double& time : taken) {
        const double start = seconds();
        for (int pass = 0; pass < 10; ++pass) {
            for (std::size_t at = 0; at < count; at += step) {
                const auto* v = reinterpret_cast<const Vector*>(memory + at);
                for (int n = 0; n < 8; ++n) {
                    sum[n] += v[n];
                }
            }
            asm volatile("" ::: "memory");
        }
        time = (seconds() - start) / 10;
    }
    sink = (sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7])[0];
    std::free(memory);
    return static_cast<double>(count * sizeof(float)) / median(taken);
}
