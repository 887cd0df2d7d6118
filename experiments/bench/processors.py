"""What a ratio was measured on: some of them differ by three times from one processor to another.

A key is written by `processor` and by nothing else. The model's name alone won't do: virtual machines call every Xeon
"Intel(R) Xeon(R) Processor".
"""

import platform
import re
from collections.abc import Container
from pathlib import Path

NUMBERS = {
    "vendor_id": "",
    "cpu family": "family ",
    "model": "model ",
    "stepping": "stepping ",
    "CPU implementer": "implementer ",
    "CPU part": "part ",
    "CPU revision": "revision ",
}
"""Lines of /proc/cpuinfo, and how a key has them; the last three are Arm's."""

ZEN_5 = "AuthenticAMD family 26, a Zen 5, model not recorded"
"""What was measured before keys had numbers. The one key that `processor` did not write."""

ZEN_5_MODELS = (range(0x10), range(0x20, 0x30), range(0x40, 0x50), range(0x70, 0x80))
"""Of family 26, as Linux has them (arch/x86/kernel/cpu/amd.c); the family goes on after Zen 5."""


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The key of this machine."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    told: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        told.setdefault(name.strip(), value.strip())
    numbers = [said + told[name] for name, said in NUMBERS.items() if told.get(name)]
    if not numbers:
        return platform.processor() or platform.machine()
    return ", ".join([" ".join(numbers), *([told["model name"]] if "model name" in told else [])])


def known_as(on: str, known: Container[str]) -> str | None:
    """The key that a processor's baseline is under; None where it has none."""
    if on in known:
        return on
    model = re.match(r"AuthenticAMD family 26 model (\d+)\b", on)
    if model and ZEN_5 in known and any(int(model[1]) in some for some in ZEN_5_MODELS):
        return ZEN_5
    return None
