"""The C functions that exported code is built of: C99, no library, no allocation; each is printed only where a plan needs it.

They are written over ``vec``, which is as many floats as the compiler's target holds in one register (gcc's and clang's vector types; one
float elsewhere, or with -DNAME_PLAIN), so that accumulators stay in registers, where gcc would spill an array of them. Weights lie in panels
of 8 outputs. Activations are in c_activations.
"""

from __future__ import annotations

from distillrl.targets.c_activations import ACTIVATIONS

PRELUDE = """
#if defined(__GNUC__) && !defined(@NAME@_PLAIN) && defined(__AVX__)
#define LANES 8
#elif defined(__GNUC__) && !defined(@NAME@_PLAIN) && (defined(__SSE2__) || defined(__ARM_NEON))
#define LANES 4
#else
#define LANES 1
#endif

#if LANES > 1
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));
#define SELECT(m, x, y) ((vec)(((mask)(x) & (m)) | ((mask)(y) & ~(m))))
#define LANE(x, k) ((x)[k])
#define ALIGNED __attribute__((aligned(32)))
#else
typedef float vec;
#define SELECT(m, x, y) ((m) ? (x) : (y))
#define LANE(x, k) (x)
#define ALIGNED
#endif
#define LOAD(p) (*(const vec *)(p))
#define STORE(p, x) (*(vec *)(p) = (x))
#define SPLAT(x) ((vec){0} + (x))
"""



def _extreme(name: str, sign: str, instruction: str) -> str:
    """One instruction where x86 has it: it gives the same bits, its second number where one is NaN."""
    return f"""#if LANES > 1 && defined(__has_builtin)
#if __has_builtin(__builtin_ia32_{instruction}ps256) && LANES == 8
#define {name}(x, y) ((vec)__builtin_ia32_{instruction}ps256(y, x))
#elif __has_builtin(__builtin_ia32_{instruction}ps) && LANES == 4
#define {name}(x, y) ((vec)__builtin_ia32_{instruction}ps(y, x))
#endif
#endif
#ifndef {name}
static vec {name}(vec x, vec y) {{ return SELECT(x {sign} y, y, x); }}
#endif
"""


SMALLER = _extreme("smaller", ">", "min")
LARGER = _extreme("larger", "<", "max")


def _columns(count: int) -> str:
    lines = [f"            const float *p = w + at / 8 * 8 * n + at % 8;\n            vec {', '.join(f'a{k} = LOAD(b + at + {k} * LANES)' for k in range(count))};"]
    lines.append("            UNROLLED\n            for (i = 0; i < n; i++, p += 8) {\n                const vec v = SPLAT(x[i]);")
    for k in range(count):
        lines.append(f"                a{k} += v * LOAD(p + {k} * LANES / 8 * 8 * n + {k} * LANES % 8);")
    lines.append("            }")
    lines += [f"            STORE(y + at + {k} * LANES, a{k});" for k in range(count)]
    return "\n".join(lines)


DENSE = f"""
#if LANES > 1 && defined(__GNUC__) && !defined(__clang__)
#define UNROLLED _Pragma("GCC unroll 2")
#else
#define UNROLLED
#endif

/* y[m] = W x[n] + b. W lies in panels of 8 outputs, [m / 8][n][8], then the rows that are left, [m % 8][n]. */
static void dense(const float *x, const float *w, const float *b, float *y, int n, int m)
{{
    const int whole = m - m % 8;
    int at = 0, i;
    for (; at + 8 * LANES <= whole; at += 8 * LANES) {{
{_columns(8)}
    }}
#if LANES > 1
    for (; at + 4 * LANES <= whole; at += 4 * LANES) {{
{_columns(4)}
    }}
    for (; at < whole; at += LANES) {{
            const float *p = w + at / 8 * 8 * n + at % 8;
            vec a0 = LOAD(b + at), a1 = SPLAT(0.0f), a2 = a1, a3 = a1;
            for (i = 0; i + 4 <= n; i += 4, p += 32) {{
                a0 += SPLAT(x[i]) * LOAD(p);
                a1 += SPLAT(x[i + 1]) * LOAD(p + 8);
                a2 += SPLAT(x[i + 2]) * LOAD(p + 16);
                a3 += SPLAT(x[i + 3]) * LOAD(p + 24);
            }}
            for (; i < n; i++, p += 8) a0 += SPLAT(x[i]) * LOAD(p);
            STORE(y + at, (a0 + a1) + (a2 + a3));
    }}
#endif
    for (at = whole; at < m; at++) {{
        const float *row = w + (size_t)at * (size_t)n;
        float sum = b[at];
        i = 0;
#if LANES > 1
        {{
            vec a = SPLAT(0.0f);
            int k;
            for (; i + LANES <= n; i += LANES) a += LOAD(x + i) * LOAD(row + i);
            for (k = 0; k < LANES; k++) sum += a[k];
        }}
#endif
        for (; i < n; i++) sum += x[i] * row[i];
        y[at] = sum;
    }}
}}
"""

def _sparse(kind: str, name: str) -> str:
    return f"""/* y[m] = W x + b, where most of W is zero: row j has count[j] weights w, each with the place of its input in x. */
static void {name}_(const float *x, const float *w, const {kind} *at, const uint16_t *count, const float *b, float *y, int m)
{{
    int j, k;
    for (j = 0; j < m; j++) {{
        float sum = b[j];
        for (k = 0; k < (int)count[j]; k++) sum += *w++ * x[*at++];
        y[j] = sum;
    }}
}}
"""


def _sparse_int8(kind: str, name: str) -> str:
    return f"""/* y[m] = scale * (W q) + b of whole numbers, where most of W is zero: row j has count[j] weights w, each with the place of its input. */
static void {name}_(const int16_t *q, const int8_t *w, const {kind} *at, const uint16_t *count, const float *scale, const float *b, float *y, int m)
{{
    int j, k;
    for (j = 0; j < m; j++) {{
        int32_t sum = 0;
        for (k = 0; k < (int)count[j]; k++) sum += (int16_t)*w++ * q[*at++];
        y[j] = (float)sum * scale[j] + b[j];
    }}
}}
"""


def _resample(kind: str, name: str) -> str:
    return f"""/* y[b][i][a] = part * sum of weights[k][i] * x[b][places[k][i]][a], rounded where these are pixels of 8 bits. */
static void {name}_(const {kind} *x, const int32_t *places, const float *weights, float *restrict y, int before, int n, int after, int m, int taps, float part, int pixels)
{{
    int b, i, a, k;
    for (b = 0; b < before; b++)
        for (i = 0; i < m; i++, y += after) {{
            for (a = 0; a < after; a++) y[a] = 0.0f;
            for (k = 0; k < taps; k++) {{
                const {kind} *from = x + ((ptrdiff_t)b * n + places[k * m + i]) * after;
                const float w = weights[k * m + i];
                for (a = 0; a < after; a++) y[a] += w * (float)from[a];
            }}
            for (a = 0; a < after; a++) y[a] = pixels ? (float)(int32_t)(y[a] * part + 0.5f) : y[a] * part;
        }}
}}
"""


FUNCTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "smaller": (SMALLER, ()),
    "larger": (LARGER, ()),
    **ACTIVATIONS,
    "dense": (DENSE, ()),
    "sparse8": (_sparse("uint8_t", "sparse8"), ()),
    "sparse16": (_sparse("uint16_t", "sparse16"), ()),
    "finite": (
        """/* Whether no number is NaN or infinite; looks at the bits, so that -ffast-math can't remove it. */
static int finite_(const float *x, int n)
{
    uint32_t worst = 0;
    int i;
    for (i = 0; i < n; i++) {
        union { float f; uint32_t u; } both;
        both.f = x[i];
        worst |= (uint32_t)((both.u & 0x7f800000u) == 0x7f800000u);
    }
    return worst == 0;
}
""",
        (),
    ),
    "finite_wide": (
        """static int finite_wide_(const double *x, int n)
{
    uint32_t worst = 0;
    int i;
    for (i = 0; i < n; i++) {
        union { double f; uint64_t u; } both;
        both.f = x[i];
        worst |= (uint32_t)((both.u >> 52 & 0x7ffu) == 0x7ffu);
    }
    return worst == 0;
}
""",
        (),
    ),
    "best": (
        """/* The index of the largest of n; the first of equal ones. */
static int32_t best_(const float *x, int n)
{
    int32_t best = 0;
    int i;
    for (i = 1; i < n; i++)
        if (x[i] > x[best]) best = (int32_t)i;
    return best;
}
""",
        (),
    ),
    "whole": (
        """/* q = x * inverse + zero as a whole number in [-half, half - 1]. */
static void whole_(const float *x, const float *inverse, const float *zero, int one, int half, int16_t *q, int n)
{
    const float low = (float)-half, high = (float)(half - 1);
    int i;
    for (i = 0; i < n; i++) {
        const float v = x[i] * inverse[one ? 0 : i] + zero[one ? 0 : i];
        const float inside = v > low ? (v < high ? v : high) : low;
        q[i] = (int16_t)((int)(inside + (0.5f - low)) - half);
    }
}
""",
        (),
    ),
    "sparse_int8_8": (_sparse_int8("uint8_t", "sparse_int8_8"), ("whole",)),
    "sparse_int8_16": (_sparse_int8("uint16_t", "sparse_int8_16"), ("whole",)),
    "dense_int8": (
        """/* y[m] = scale * (W q) + b of whole numbers, with W [m][n] row by row; four rows share what is loaded of q. */
static void dense_int8_(const int16_t *q, const int8_t *w, const float *scale, const float *b, float *y, int n, int m)
{
    int i, j = 0;
    for (; j + 4 <= m; j += 4, w += 4 * n) {
        int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        for (i = 0; i < n; i++) {
            s0 += (int16_t)w[i] * q[i];
            s1 += (int16_t)w[n + i] * q[i];
            s2 += (int16_t)w[2 * n + i] * q[i];
            s3 += (int16_t)w[3 * n + i] * q[i];
        }
        y[j] = (float)s0 * scale[j] + b[j];
        y[j + 1] = (float)s1 * scale[j + 1] + b[j + 1];
        y[j + 2] = (float)s2 * scale[j + 2] + b[j + 2];
        y[j + 3] = (float)s3 * scale[j + 3] + b[j + 3];
    }
    for (j = m - m % 4; j < m; j++, w += n) {
        int32_t sum = 0;
        for (i = 0; i < n; i++) sum += (int16_t)w[i] * q[i];
        y[j] = (float)sum * scale[j] + b[j];
    }
}
""",
        ("whole",),
    ),
    "resample": (_resample("float", "resample"), ()),
    "resample_bytes": (_resample("uint8_t", "resample_bytes"), ()),
    "pool": (
        """/* y [channels][rows][columns]: the largest of each window of x [channels][height][width]. */
static void pool_(const float *x, float *y, int channels, int height, int width, int kh, int kw, int sy, int sx, int py, int px, int rows, int columns)
{
    int i, r, c, u, v;
    for (i = 0; i < channels; i++, x += (ptrdiff_t)height * width)
        for (r = 0; r < rows; r++)
            for (c = 0; c < columns; c++) {
                const int top = r * sy - py, left = c * sx - px;
                const int last = top + kh < height ? top + kh : height, end = left + kw < width ? left + kw : width;
                float most = -3.402823466e38f;
                for (u = top > 0 ? top : 0; u < last; u++)
                    for (v = left > 0 ? left : 0; v < end; v++)
                        if (!(x[(ptrdiff_t)u * width + v] <= most)) most = x[(ptrdiff_t)u * width + v];
                *y++ = most;
            }
}
""",
        (),
    ),
    "norm": (
        """/* (x - mean) / sqrt(variance + epsilon) * w + b; the root is Newton's, from a guess by the exponent. */
static void norm_(const float *x, const float *w, const float *b, float epsilon, float *y, int n)
{
    union { float f; uint32_t u; } root;
    float mean = 0.0f, variance = 0.0f;
    int i;
    for (i = 0; i < n; i++) mean += x[i];
    mean /= (float)n;
    for (i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
    variance = variance / (float)n + epsilon;
    root.f = variance;
    root.u = (root.u >> 1) + 0x1fc00000u;
    for (i = 0; i < 4; i++) root.f = 0.5f * (root.f + variance / root.f);
    for (i = 0; i < n; i++) y[i] = (x[i] - mean) / root.f * w[i] + b[i];
}
""",
        (),
    ),
}
"""name → (its code, what it calls)."""


def convolution(tile: int) -> str:
    """A convolution that computes ``tile`` columns of 8 output channels at a time; a row's last ones may be computed twice."""
    columns = range(tile)
    return f"""
/* y [outputs][rows][columns] from x [channels][height][width]; w is [outputs / 8][channels][kh][kw][8]. */
static void conv{tile}_(const float *x, const float *w, const float *b, float *y, int channels, int height, int width, int kh, int kw, int sy, int sx, int outputs, int rows, int columns)
{{
    const int panel = channels * kh * kw * 8;
    int o, l, r, t, k, i, u, v;
    for (o = 0; o < outputs; o += 8)
        for (l = 0; l < 8 && o + l < outputs; l += LANES)
            for (r = 0; r < rows; r++)
                for (t = 0; t < columns; t += {tile}) {{
                    const int c = t + {tile} <= columns ? t : columns - {tile};
                    const float *p = w + (ptrdiff_t)(o / 8) * panel + l;
                    float *to = y + ((ptrdiff_t)(o + l) * rows + r) * columns + c;
                    vec {', '.join(f'a{k} = LOAD(b + o + l)' if k == 0 else f'a{k} = a0' for k in columns)};
                    for (i = 0; i < channels; i++)
                        for (u = 0; u < kh; u++) {{
                            const float *from = x + ((ptrdiff_t)i * height + r * sy + u) * width + c * sx;
                            for (v = 0; v < kw; v++, from++, p += 8) {{
                                const vec f = LOAD(p);
{chr(10).join(f'                                a{k} += SPLAT(from[{k} * sx]) * f;' if k else '                                a0 += SPLAT(from[0]) * f;' for k in columns)}
                            }}
                        }}
                    for (k = 0; k < LANES && o + l + k < outputs; k++) {{
{chr(10).join(f'                        to[(ptrdiff_t)k * rows * columns + {k}] = LANE(a{k}, k);' for k in columns)}
                    }}
                }}
}}
"""


def printed(needed: set[str], name: str, tiles: set[int]) -> str:
    """The code of the needed functions, of convolutions of ``tiles`` columns, and of all that they call, in order."""
    wanted = set(needed)
    while True:
        called = {inner for function in wanted for inner in FUNCTIONS[function][1]}
        if called <= wanted:
            break
        wanted |= called
    vectors = wanted - {"finite", "finite_wide", "best", "norm", "dense_int8", "whole", "resample", "resample_bytes", "pool", "sparse8", "sparse16", "sparse_int8_8", "sparse_int8_16"}
    prelude = PRELUDE.replace("@NAME@", name.upper()) if vectors or tiles else "\n#define ALIGNED\n"
    convolutions = "".join(convolution(tile) for tile in sorted(tiles))
    return prelude + "\n" + "\n".join(code for function, (code, _) in FUNCTIONS.items() if function in wanted) + convolutions
