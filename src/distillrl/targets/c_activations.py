"""Elementwise functions of exported C, over ``vec`` (see c_kernels); each is within 5e-7 of the truth, for large numbers of its own size.

tanh and erf are odd rational functions x·P(x²)/Q(x²), fitted by scripts/fit_activations.py. exp takes the whole part of x / ln 2 as the exponent's
bits, log gives the exponent's bits and the series of atanh((m − 1) / (m + 1)) of what is left, in [√½, √2).
"""

from __future__ import annotations

RATIONAL = {
    "tanh": (
        9.0,
        (0.9999998807907104, 0.1337318867444992, 0.0034865709021687508, 2.0471647076192312e-05, 1.318397035987573e-08),
        (1.0, 0.46706485748291016, 0.025841938331723213, 0.00032713671680539846, 7.70255951465515e-07),
    ),
    "erf": (
        4.0,
        (1.128378987312317, 0.19624750316143036, 0.053467243909835815, 0.004003569949418306, 0.0002880376123357564, 1.9748154045373667e-06),
        (1.0, 0.507250964641571, 0.11647578328847885, 0.015444274060428143, 0.0012163373176008463, 3.748050585272722e-05),
    ),
}
"""name → the range outside of which the function is ±1 to float32, P and Q from the constant term on."""


def _rational(name: str) -> str:
    end, p, q = RATIONAL[name]

    def horner(coefficients: tuple[float, ...]) -> str:
        text = f"SPLAT({coefficients[-1]:.9g}f)"
        for c in coefficients[-2::-1]:
            text = f"({text} * s + {c:.9g}f)" if c != 1.0 else f"({text} * s + 1.0f)"
        return text

    return f"""static vec {name}_(vec v)
{{
    const vec x = larger(smaller(v, SPLAT({end:.1f}f)), SPLAT(-{end:.1f}f));
    const vec s = x * x;
    return x * {horner(p)}
        / {horner(q)};
}}
"""


BITS = """#if LANES > 1
typedef mask bits;
#define TRUNCATED(x) __builtin_convertvector(x, bits)
#define TO_FLOAT(x) __builtin_convertvector(x, vec)
#else
typedef int32_t bits;
#define TRUNCATED(x) ((bits)(x))
#define TO_FLOAT(x) ((float)(x))
#endif
"""

TO_BITS = """#if LANES > 1
#define TO_BITS(x) ((bits)(x))
#else
static bits TO_BITS(float x)
{
    union { float f; int32_t i; } both;
    both.f = x;
    return both.i;
}
#endif
"""

FROM_BITS = """#if LANES > 1
#define FROM_BITS(x) ((vec)(x))
#else
static float FROM_BITS(bits x)
{
    union { float f; int32_t i; } both;
    both.i = x;
    return both.f;
}
#endif
"""

EXP = """/* NaN stays NaN, and is made a number where it becomes an integer, which has no defined result for it. */
static vec exp_(vec v)
{
    const vec x = smaller(SELECT(v > SPLAT(-87.0f), v, SPLAT(-87.0f)), SPLAT(88.0f));
    const bits k = TRUNCATED(x * 1.44269504f + 128.5f);
    const vec n = TO_FLOAT(k) - 128.0f;
    const vec f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    const vec p = (((((SPLAT(0.00138888889f) * f + 0.00833333333f) * f + 0.0416666667f) * f + 0.166666667f) * f + 0.5f) * f + 1.0f) * f + 1.0f;
    return SELECT(v == v, p * FROM_BITS((k - 1) * 8388608), v);
}
"""

LOG = """/* Of a number above 0; what isn't is taken as the smallest that is. */
static vec log_(vec v)
{
    const vec x = SELECT(v > SPLAT(1.17549435e-38f), v, SPLAT(1.17549435e-38f));
    const bits k = (TO_BITS(x) + 4913933) / 8388608 - 127;
    const vec m = FROM_BITS(TO_BITS(x) - k * 8388608);
    const vec s = (m - 1.0f) / (m + 1.0f), t = s * s;
    const vec p = ((((SPLAT(0.181818182f) * t + 0.222222222f) * t + 0.285714286f) * t + 0.4f) * t + 0.666666667f) * t + 2.0f;
    return SELECT(v == v, s * p + TO_FLOAT(k) * 0.693147181f, v);
}
"""

MISH = """static vec mish_(vec x)
{
    const vec e = exp_(smaller(x, -x)), d = e * (e + 2.0f), u = 1.0f + 2.0f * e;
    return x * SELECT(x > SPLAT(0.0f), u, d) / (SELECT(x > SPLAT(0.0f), u + 2.0f * e * e, d + 2.0f));
}
"""

SQRT = """static vec sqrt_(vec x)
{
    vec root = FROM_BITS(TO_BITS(x) / 2 + 0x1fc00000);
    int i;
    for (i = 0; i < 4; i++) root = 0.5f * (root + x / root);
    return SELECT(x > SPLAT(0.0f), root, x * 0.0f);
}
"""

ACTIVATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tanh": (_rational("tanh"), ("smaller", "larger")),
    "erf": (_rational("erf"), ("smaller", "larger")),
    "sigmoid": ("static vec sigmoid_(vec x) { return 0.5f * tanh_(0.5f * x) + 0.5f; }\n", ("tanh",)),
    "silu": ("static vec silu_(vec x) { return x * sigmoid_(x); }\n", ("sigmoid",)),
    "relu": ("static vec relu_(vec x) { return larger(x, SPLAT(0.0f)); }\n", ("larger",)),
    # e^x − 1 = 2t / (1 − t) with t = tanh(x / 2), well conditioned for x < 0.
    "elu": (
        "static vec elu_(vec x, float alpha)\n{\n    const vec t = tanh_(0.5f * smaller(x, SPLAT(0.0f)));\n"
        "    return SELECT(x > SPLAT(0.0f), x, alpha * 2.0f * t / (1.0f - t));\n}\n",
        ("tanh", "smaller"),
    ),
    "gelu": ("static vec gelu_(vec x) { return 0.5f * x * (1.0f + erf_(0.707106781f * x)); }\n", ("erf",)),
    "gelu_tanh": (
        "static vec gelu_tanh_(vec x) { return 0.5f * x * (1.0f + tanh_(0.797884561f * (x + 0.044715f * x * x * x))); }\n",
        ("tanh",),
    ),
    "leaky": ("static vec leaky_(vec x, vec slope) { return SELECT(x > SPLAT(0.0f), x, slope * x); }\n", ()),
    "clip": ("static vec clip_(vec x, float low, float high) { return larger(smaller(x, SPLAT(high)), SPLAT(low)); }\n", ("smaller", "larger")),
    # Of numbers within ± half, which NaN is made one of: a conversion of others to int has no defined result.
    "round": (
        """static vec round_(vec x, float half)
{
    const vec y = SELECT(x > SPLAT(-half), x, SPLAT(-half)) + (half + 0.5f);
#if LANES > 1
    return __builtin_convertvector(__builtin_convertvector(y, mask), vec) - half;
#else
    return (float)(int32_t)y - half;
#endif
}
""",
        (),
    ),
    "bits": (BITS, ()),
    "to_bits": (TO_BITS, ("bits",)),
    "from_bits": (FROM_BITS, ("bits",)),
    "exp": (EXP, ("from_bits", "smaller")),
    "log": (LOG, ("to_bits", "from_bits")),
    "sqrt": (SQRT, ("to_bits", "from_bits")),
    "reciprocal": ("static vec reciprocal_(vec x) { return 1.0f / x; }\n", ()),
    "step": ("static vec step_(vec x) { return SELECT(x > SPLAT(0.0f), SPLAT(1.0f), SPLAT(0.0f)); }\n", ()),
    "softplus": ("static vec softplus_(vec x) { return larger(x, SPLAT(0.0f)) + log_(1.0f + exp_(smaller(x, -x))); }\n", ("exp", "log", "smaller", "larger")),
    # tanh(log(1 + e^x)), by e^-|x|.
    "mish": (MISH, ("exp", "smaller")),
}
"""name → (its code, what it calls); in the order in which they are printed."""
