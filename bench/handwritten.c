/* The yardstick of bench/export.py: a tanh network 8 → WIDTH → WIDTH → 4 by hand, with gcc's vector types and accumulators in registers. */
#include "policy.h"
#include "weights.h"

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t i8 __attribute__((vector_size(32)));
#define SELECT(m, a, b) ((v8)(((i8)(a) & (m)) | ((i8)(b) & ~(m))))

static inline v8 tanh8(v8 x)
{
    const v8 nine = (v8){0} + 9.0f;
    v8 s, p, q;
    x = SELECT(x > nine, nine, x);
    x = SELECT(x < -nine, -nine, x);
    s = x * x;
    p = (((1.318397036e-08f * s + 2.047164708e-05f) * s + 0.003486570902f) * s + 0.1337318867f) * s + 0.9999998808f;
    q = (((7.702559515e-07f * s + 0.0003271367168f) * s + 0.02584193833f) * s + 0.4670648575f) * s + 1.0f;
    return x * p / q;
}

/* y[m] = tanh(W' x + b) with w [n][m], 32 outputs at a time. */
static inline void layer(const float *x, const float *w, const float *b, float *y, int n, int m)
{
    int at = 0, i, k;
    for (; at + 32 <= m; at += 32) {
        v8 a[4];
        for (k = 0; k < 4; k++) a[k] = *(const v8 *)(b + at + 8 * k);
        for (i = 0; i < n; i++)
            for (k = 0; k < 4; k++) a[k] += x[i] * *(const v8 *)(w + i * m + at + 8 * k);
        for (k = 0; k < 4; k++) *(v8 *)(y + at + 8 * k) = tanh8(a[k]);
    }
    for (; at < m; at += 16) {
        v8 a[2];
        for (k = 0; k < 2; k++) a[k] = *(const v8 *)(b + at + 8 * k);
        for (i = 0; i < n; i++)
            for (k = 0; k < 2; k++) a[k] += x[i] * *(const v8 *)(w + i * m + at + 8 * k);
        for (k = 0; k < 2; k++) *(v8 *)(y + at + 8 * k) = tanh8(a[k]);
    }
}

int policy_act(const policy_input *input, policy_output *output)
{
    typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));
    float h[WIDTH] __attribute__((aligned(32))), g[WIDTH] __attribute__((aligned(32)));
    v4 o[4] = {*(const v4 *)b2, {0}, {0}, {0}};
    int i, k, best = 0;
    layer(input->obs, w0, b0, h, 8, WIDTH);
    layer(h, w1, b1, g, WIDTH, WIDTH);
    for (i = 0; i < WIDTH; i += 4)
        for (k = 0; k < 4; k++) o[k] += g[i + k] * *(const v4 *)(w2 + 4 * (i + k));
    o[0] = (o[0] + o[1]) + (o[2] + o[3]);
    for (k = 0; k < 4; k++) output->logits[k] = o[0][k];
    for (k = 1; k < 4; k++)
        if (o[0][k] > o[0][best]) best = k;
    output->action = best;
    return 0;
}
