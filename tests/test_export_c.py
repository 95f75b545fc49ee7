"""Exported C where it will run: no warnings, no undefined behaviour whatever the input, and the same actions on a Cortex-M4."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from export_cases import CASES, ROUNDED, observations

from distillrl import exporting
from distillrl.targets import c_header
from distillrl.targets.tracing import trace

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wshadow", "-Wconversion"]
ARM = ["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]


def tool(name: str, package: str) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return name


def exported(case: str, to: str, folder: Path):
    policy = (CASES | ROUNDED)[case]()
    states = {k: v.numpy() for k, v in observations(policy.spec, 300, 99).items()}
    return policy, exporting.export(policy, to, folder, states=states)


def kinds(case: str) -> list[str]:
    return ["c", "c-int8"] if case in {"discrete", "several", "norms", "box", "zeros", "whole"} else ["c"]


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))[:200]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize(("compiler", "package"), [("gcc", "gcc"), ("clang", "clang"), (ARM[0], "gcc-arm-none-eabi libnewlib-arm-none-eabi")])
@pytest.mark.parametrize("case", CASES | ROUNDED)
def test_compiles_without_a_warning(case, compiler, package, tmp_path):
    tool(compiler, package)
    for to in kinds(case):
        _, files = exported(case, to, tmp_path / to)
        flags = [["-O2", *ARM[1:]]] if compiler == ARM[0] else [["-O1", "-march=haswell"], ["-Os", "-DPOLICY_PLAIN"]]
        for more in flags:
            run(compiler, *STRICT, *more, "-c", files.files[0], "-o", tmp_path / "policy.o")


def test_the_header_is_c_plus_plus_too(tmp_path):
    tool("g++", "g++")
    _, files = exported("lstm", "c", tmp_path)
    (tmp_path / "main.cpp").write_text('#include "policy.h"\n#include "policy.h"\nint main() { policy_memory m; policy_reset(&m); return 0; }\n')
    run("gcc", "-std=c99", "-c", files.files[0], "-o", tmp_path / "policy.o")
    run("g++", "-Wall", "-Wextra", "-Wpedantic", "-Werror", tmp_path / "main.cpp", tmp_path / "policy.o", "-o", tmp_path / "main")


@pytest.mark.parametrize("case", ["thin", "start", "norms", "activations", "more activations", "attention", "graph", "lstm", "gru", "frames", "grey", "zeros", "whole"])
def test_nothing_is_read_before_it_is_written(case, tmp_path):
    """Clang's memory sanitizer, on sizes that are no multiple of a vector."""
    tool("clang", "clang libclang-rt-dev")
    policy, files = exported(case, "c", tmp_path)
    (tmp_path / "fuzz.c").write_text(fuzzer(policy))
    command = ["clang", "-std=c99", "-g", "-O1", "-fsanitize=memory", "-fno-sanitize-recover=all", "-march=haswell", tmp_path / "fuzz.c", files.files[0], "-o", tmp_path / "fuzz"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("clang has no memory sanitizer here: apt-get install libclang-rt-14-dev")
    run(tmp_path / "fuzz")


FUZZ = """
#include "policy.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t seed = 12345;
static uint32_t next(void) { seed ^= seed << 13; seed ^= seed >> 17; seed ^= seed << 5; return seed; }

/* Inputs of random bytes, of ordinary numbers, and of special ones; each buffer is of the heap, and no longer than its struct. */
int main(void)
{
    static const float special[] = {0.0f, -0.0f, 1e-45f, 3.4e38f, -3.4e38f, 1e20f, -1e20f, 1.0f};
    unsigned long counts[3] = {0, 0, 0};
    long k;
    for (k = 0; k < 4000; k++) {
        policy_input *input = malloc(sizeof *input);
        policy_output *output = malloc(sizeof *output);
        unsigned char *bytes = (unsigned char *)input;
        size_t i;
        int status;
        @MAKE@
        for (i = 0; i < sizeof *input; i++) bytes[i] = (unsigned char)next();
        if (k % 4)
            for (i = 0; i + 4 <= sizeof *input; i += 4) {
                float f = k % 4 == 1 ? special[next() % 8] : k % 4 == 2 ? (float)(next() % 2000) / 500.0f - 2.0f : 0.0f;
                if (k % 4 == 3 || @INTEGERS@) memset(bytes + i, (int)(next() % 2 && k % 4 == 3), 1), memset(bytes + i + 1, 0, 3);
                else memcpy(bytes + i, &f, 4);
            }
        memset(output, 0xff, sizeof *output);
        status = policy_act(@MEMORY@input, output);
        if (status < 0 || status > 2) return 1;
        counts[status]++;
        @CHECK@
        free(input);
        free(output);
        @FREE@
    }
    printf("%lu %lu %lu\\n", counts[0], counts[1], counts[2]);
    return 0;
}
"""


@pytest.mark.parametrize(("case", "plain"), [*((case, False) for case in CASES | ROUNDED), *((case, True) for case in ("discrete", "lstm", "frames", "norms", "whole"))])
def test_no_undefined_behaviour_whatever_the_input(case, plain, tmp_path):
    tool("gcc", "gcc")
    for to in kinds(case):
        policy, files = exported(case, to, tmp_path / to)
        source = tmp_path / to / "fuzz.c"
        source.write_text(fuzzer(policy))
        flags = ["-DPOLICY_PLAIN"] if plain else ["-march=haswell"]
        sane = ["-fsanitize=address,undefined,float-cast-overflow,float-divide-by-zero", "-fno-sanitize-recover=all"]
        binary = tmp_path / to / "fuzz"
        run("gcc", "-std=c99", "-g", "-O1", *sane, *flags, source, files.files[0], "-o", binary)
        good, bad, _ = map(int, run(binary, env={"ASAN_OPTIONS": "detect_leaks=1"}).split())
        assert good > 0
        assert bad > 0 or case in {"frames", "grid", "grey", "resized"}  # an image has no bad bytes


def fuzzer(policy) -> str:
    plan = trace(policy)
    rule, raw = plan.decode, plan.decode.raw_name
    checks = [f"for (i = 0; i < {plan.raw_size}; i++) if (!(output->{raw}[i] - output->{raw}[i] == 0.0f)) return 2;"]
    if rule.kind == "argmax":
        checks.append(f"if (output->action < {rule.start} || output->action >= {rule.start + plan.raw_size}) return 3;")
    elif rule.discrete:
        tops = rule.nvec or (2,) * plan.raw_size
        checks += [f"if (output->action[{j}] < 0 || output->action[{j}] >= {n}) return 3;" for j, n in enumerate(tops)]
    else:
        for j, (low, high) in enumerate(zip(rule.low, rule.high, strict=True)):
            for sign, end in (("<", low), (">", high)):
                checks += [f"if (output->action[{j}] {sign} {float(np.float32(end)):.9g}) return 3;"] if np.isfinite(end) else []
    integers = all(g.held not in {"float32", "float64"} for g in plan.inputs)
    memory = bool(plan.states)
    text = FUZZ.replace("@CHECK@", "\n        ".join(checks)).replace("@INTEGERS@", str(int(integers)))
    text = text.replace("@MAKE@", "policy_memory *memory = malloc(sizeof *memory);\n        policy_reset(memory);" if memory else "")
    return text.replace("@MEMORY@", "memory, " if memory else "").replace("@FREE@", "free(memory);" if memory else "")


CONTRACT = """
#include "policy.h"
#include <stdio.h>
#include <string.h>
int main(void)
{
    static const uint32_t odd[] = {0x7fc00000u, 0xffc00001u, 0x7f800001u, 0x7f800000u, 0xff800000u};
    policy_input input;
    policy_output output;
    int i, j;
    for (i = 0; i < 8; i++) input.obs[i] = 0.25f;
    if (policy_act(&input, &output) != POLICY_OK) return 1;
    for (j = 0; j < 5; j++)
        for (i = 0; i < 8; i++) {
            policy_input broken = input;
            memcpy(&broken.obs[i], &odd[j], 4);
            output.action = 99;
            if (policy_act(&broken, &output) != POLICY_BAD_INPUT || output.action != 0 || output.logits[3] != 0.0f) return 2;
        }
    for (i = 0; i < 8; i++) input.obs[i] = 3e38f;
    if (policy_act(&input, &output) != POLICY_OVERFLOW || output.action != 0) return 3;
    return 0;
}
"""


@pytest.mark.parametrize("flags", [["-O0"], ["-O3", "-march=haswell"], ["-O2", "-ffast-math"], ["-Os", "-DPOLICY_PLAIN"]], ids=" ".join)
def test_nan_infinity_and_overflow_do_what_the_header_says(flags, tmp_path):
    tool("gcc", "gcc")
    _, files = exported("linear", "c", tmp_path)
    (tmp_path / "main.c").write_text(CONTRACT)
    run("gcc", "-std=c99", *flags, tmp_path / "main.c", files.files[0], "-o", tmp_path / "main")
    run(tmp_path / "main")


def test_the_memory_that_is_printed_is_the_memory_that_is_used(tmp_path):
    tool(ARM[0], "gcc-arm-none-eabi libnewlib-arm-none-eabi")
    for case, to in (("discrete", "c"), ("discrete", "c-int8"), ("lstm", "c"), ("frames", "c")):
        _, files = exported(case, to, tmp_path / case / to)
        facts, folder = files.facts, tmp_path / case / to
        run(*ARM, "-std=c99", "-Os", "-fstack-usage", "-c", files.files[0], "-o", folder / "policy.o")
        sizes = run("arm-none-eabi-size", folder / "policy.o").splitlines()[1].split()
        text, data, bss = map(int, sizes[:3])
        assert data == 0
        assert bss == facts["ram_static"]
        assert facts["flash_constants"] < text < facts["flash_constants"] + 4000
        stack = max(int(line.split("\t")[1]) for line in (folder / "policy.su").read_text().splitlines())
        assert stack <= facts["stack"] <= stack + 400
        printed = files.files[1].read_text()
        assert re.search(rf"flash {facts['flash_constants']} bytes of constants plus code, static RAM {bss} bytes, stack about {facts['stack']} bytes", printed)


BOARD = """
.syntax unified
.cpu cortex-m4
.thumb
.section .vectors, "a"
.word stack_top
.word start + 1
.word hang + 1
.word hang + 1
.text
.thumb_func
.global start
start:
    ldr r0, =0xE000ED88      /* the FPU is off at reset */
    ldr r1, [r0]
    orr r1, r1, #(0xF << 20)
    str r1, [r0]
    dsb
    isb
    bl main
    movs r0, #0x18           /* semihosting: exit */
    ldr r1, =0x20026
    bkpt 0xAB
.thumb_func
hang:
    movs r0, #0x18
    ldr r1, =0x20023
    bkpt 0xAB
    b hang
"""

LINK = """
MEMORY { flash (rx) : ORIGIN = 0, LENGTH = 4M  ram (rwx) : ORIGIN = 0x20000000, LENGTH = 4M }
SECTIONS {
  .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) } > flash
  .ARM.exidx : { *(.ARM.exidx*) } > flash
  .bss (NOLOAD) : { *(.bss*) *(COMMON) *(.data*) } > ram
  stack_top = ORIGIN(ram) + LENGTH(ram);
}
"""

ON_BOARD = """
#include "policy.h"
#include "states.h"

/* Semihosting's SYS_WRITE0: a line at a time. */
static void say(const char *text)
{
    register int operation __asm__("r0") = 4;
    register const char *from __asm__("r1") = text;
    __asm__ volatile("bkpt 0xAB" : "+r"(operation) : "r"(from) : "memory");
}

static policy_input input;
static policy_output output;
@STATIC@

int main(void)
{
    static const char digits[] = "0123456789abcdef";
    char line[4 * 8 * 2 + 2];
    long k;
    @RESET@
    for (k = 0; k < STATES; k++) {
        const unsigned char *bytes = (const unsigned char *)&output.action;
        unsigned i;
        input = states[k];
        if (policy_act(@MEMORY@&input, &output) != POLICY_OK) say("BAD\\n");
        for (i = 0; i < sizeof output.action; i++) {
            line[2 * i] = digits[bytes[i] >> 4];
            line[2 * i + 1] = digits[bytes[i] & 15];
        }
        line[2 * i] = '\\n';
        line[2 * i + 1] = 0;
        say(line);
    }
    return 0;
}
"""


def on_cortex_m4(policy, files, obs: np.ndarray, folder: Path, flags: list[str]) -> np.ndarray:
    """Actions [n] or [n, A] that the exported code chooses on an emulated Cortex-M4, one state after the other."""
    plan = trace(policy)
    field = c_header.fields(plan)["obs"]
    rows = ",\n".join("{{" + ", ".join(f"{v:.9g}f" if "." in f"{v:.9g}" or "e" in f"{v:.9g}" else f"{v:.9g}.0f" for v in row) + "}}" for row in obs.tolist())
    (folder / "states.h").write_text(f"#define STATES {len(obs)}\n/* {field} */\nstatic const policy_input states[STATES] = {{\n{rows}\n}};\n")
    memory = bool(plan.states)
    text = ON_BOARD.replace("@STATIC@", "static policy_memory memory;" if memory else "").replace("@RESET@", "policy_reset(&memory);" if memory else "")
    (folder / "main.c").write_text(text.replace("@MEMORY@", "&memory, " if memory else ""))
    (folder / "start.s").write_text(BOARD)
    (folder / "link.ld").write_text(LINK)
    run(*ARM, "-std=gnu99", *flags, "-ffreestanding", "-nostartfiles", "-T", folder / "link.ld", folder / "start.s", folder / "main.c", files.files[0], "-o", folder / "image.elf")
    command = ["qemu-system-arm", "-M", "mps2-an386", "-cpu", "cortex-m4", "-nographic", "-semihosting-config", "enable=on,target=native", "-kernel", str(folder / "image.elf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)
    lines = (done.stdout + done.stderr).split()
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
    assert len(lines) == len(obs), lines[:5]
    kind = np.int32 if plan.decode.discrete else np.float32
    return np.array([np.frombuffer(bytes.fromhex(line), kind) for line in lines]).squeeze(-1) if plan.decode.kind == "argmax" else np.array([np.frombuffer(bytes.fromhex(line), kind) for line in lines])


def test_chooses_the_same_on_a_cortex_m4_in_ten_thousand_visited_states(tmp_path):
    tool(ARM[0], "gcc-arm-none-eabi libnewlib-arm-none-eabi")
    tool("qemu-system-arm", "qemu-system-arm")
    from test_compression import rule

    from distillrl import distillation, loading, parity
    from distillrl.config import Config
    from distillrl.parity import margin, raw_outputs

    distillation.distill(rule, "CartPole-v1", student="mlp:16x16", out=tmp_path / "run", config=Config(env_steps=2000, select_episodes=2, verdict_episodes=2, max_episode_steps=200))
    policy = loading.load(tmp_path / "run" / "student.safetensors").policy
    obs = parity.visited(policy, "CartPole-v1", 10_000)["obs"]
    found = on_cortex_m4(policy, exporting.export(policy, "c", tmp_path), obs, tmp_path, ["-O2"])
    with torch.inference_mode():
        prediction, _ = policy.act({"obs": torch.from_numpy(obs)}, {}, None)
    sure = (margin(raw_outputs(prediction), policy.spec) > 1e-4).numpy()
    assert len(found) >= 10_000
    assert sure.mean() > 0.99
    assert np.array_equal(found[sure], prediction.action.mode.numpy()[sure])


@pytest.mark.parametrize(("case", "to", "n"), [("discrete", "c", 2000), ("discrete", "c-int8", 2000), ("box", "c", 2000), ("lstm", "c", 500)])
def test_plays_the_same_on_a_cortex_m4(case, to, n, tmp_path):
    tool(ARM[0], "gcc-arm-none-eabi libnewlib-arm-none-eabi")
    tool("qemu-system-arm", "qemu-system-arm")
    policy, files = exported(case, to, tmp_path)
    obs = observations(policy.spec, n, 11)["obs"]
    found = on_cortex_m4(policy, files, obs.numpy(), tmp_path, ["-O2"])
    if to == "c-int8":  # the same numbers as on this machine: all sums are whole
        other, memory = exporting.opened(files), {}
        expected = other.act({"obs": obs}, memory, None)[0].action.mode.numpy()
        assert (found == expected).mean() > 0.999
        return
    memory, expected, sure = policy.init(1), [], []
    from distillrl.parity import margin, raw_outputs

    with torch.inference_mode():
        rows = [obs] if not memory else obs.unsqueeze(1)
        for row in rows:
            prediction, memory = policy.act({"obs": row}, memory, None)
            expected.append(prediction.action.mode.numpy())
            sure.append((margin(raw_outputs(prediction), policy.spec) > 1e-4).numpy() if case != "box" else np.ones(len(row), bool))
    expected, sure = np.concatenate(expected), np.concatenate(sure)
    if case == "box":
        assert np.abs(found - expected).max() <= 1e-5
    else:
        assert np.array_equal(found[sure], expected[sure])
        assert sure.mean() > 0.99
