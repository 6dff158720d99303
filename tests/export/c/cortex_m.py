"""Headers compiled for an Arm Cortex-M4F, and run on an emulated board (QEMU's mps2-an386)."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np

from rllib_kd.export.runners.c_runner import FLAGS, header_field, with_prefix

PROGRAMS = ("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
COMPILE = ["arm-none-eabi-gcc", *FLAGS, "-Os", "-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"]

_MEMORY = """
MEMORY { FLASH (rx) : ORIGIN = 0, LENGTH = 4M  RAM (rwx) : ORIGIN = 0x20000000, LENGTH = 4M }
SECTIONS {
    .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) } > FLASH
    .ARM.exidx : { *(.ARM.exidx*) } > FLASH
    .data : { *(.data*) } > RAM AT > FLASH
    .bss : { *(.bss*) *(COMMON) } > RAM
    end = .;
}
"""

_PROGRAM = """
#include "network.h"
#include "observations.h"

int main(void);
void start(void);

__attribute__((section(".vectors"), used)) static const uint32_t vectors[2] = {0x20400000u, (uint32_t)start};

static int ask_host(int what, const void *about)
{
    register int r0 __asm__("r0") = what;
    register const void *r1 __asm__("r1") = about;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void print(uint32_t number)
{
    char text[10];
    int i;
    for (i = 0; i < 8; i++)
        text[i] = "0123456789abcdef"[(number >> (28 - 4 * i)) & 15u];
    text[8] = ' ';
    text[9] = 0;
    ask_host(4, text); /* SYS_WRITE0 */
}

int main(void)
{
    int i, k;
    uint32_t bits;
    static float q_values[P_NUM_ACTIONS];
    for (i = 0; i < NUM_OBSERVATIONS; i++) {
        print((uint32_t)p_act((const float *)observations[i]));
        p_q_values((const float *)observations[i], q_values);
        for (k = 0; k < P_NUM_ACTIONS; k++) {
            memcpy(&bits, &q_values[k], 4);
            print(bits);
        }
    }
    return 0;
}

void start(void)
{
    *(volatile uint32_t *)0xe000ed88u |= 15u << 20; /* the floating-point unit */
    __asm__ volatile("dsb\\n\\tisb");
    main();
    ask_host(24, (const void *)0x20026); /* SYS_EXIT */
    for (;;)
        ;
}
"""


def is_there() -> bool:
    return all(shutil.which(program) for program in PROGRAMS)


def _compiled(header: Path, folder: Path, code: str, name: str, *options: str) -> Path:
    text = header.read_text()
    shutil.copy(header, folder / "network.h")
    source, out = folder / f"{name}.c", folder / name
    source.write_text("#include <stdint.h>\n#include <string.h>\n" + with_prefix(code, header_field(text, "Prefix")))
    subprocess.run([*COMPILE, str(source), "-o", str(out), *options], check=True)
    return out


def run(header: Path, obs: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Actions `[B]` and Q-values `[B, A]`, as the board computes them; Q-values of a refused one are the last ones."""
    bits = np.ascontiguousarray(obs, np.float32).reshape(len(obs), -1).view(np.uint32)
    rows = ",\n".join("{" + ", ".join(f"{number}u" for number in row) + "}" for row in bits)
    (folder / "observations.h").write_text(
        f"#define NUM_OBSERVATIONS {len(obs)}\nstatic const uint32_t observations[][{bits.shape[1]}] = {{{rows}}};\n"
    )
    (folder / "board.ld").write_text(_MEMORY)
    bare = ("-nostartfiles", "--specs=nosys.specs", "-Wl,--no-warnings", f"-T{folder / 'board.ld'}")
    program = _compiled(header, folder, _PROGRAM, "program.elf", *bare, "-ffp-contract=off", "-lm")
    board = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none"]
    done = subprocess.run(
        [*board, "-semihosting-config", "enable=on,target=native", "-kernel", str(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    numbers = np.array([int(word, 16) for word in (done.stdout + done.stderr).split()], np.uint32).reshape(len(obs), -1)
    return numbers[:, 0].view(np.int32), numbers[:, 1:].copy().view(np.float32)


def flash_bytes(header: Path, folder: Path) -> int:
    """Bytes of code and constants of the policy alone."""
    code = '#include "network.h"\nint policy(const float *x);\nint policy(const float *x) { return p_act(x); }\n'
    out = _compiled(header, folder, code, "policy.o", "-c")
    done = subprocess.run(["arm-none-eabi-size", "-A", str(out)], capture_output=True, text=True, check=True)
    return sum(int(size) for size in re.findall(r"^\.(?:text|rodata|data)\S*\s+(\d+)", done.stdout, re.MULTILINE))
