"""What huge pages bring to training on a CPU.

    mmjax prepare --config configs/quickstart.py
    python benchmarks/huge_pages.py --config configs/quickstart.py --stage pretrain --steps 60 --rounds 3

A step of XLA on the CPU gives its large buffers back to the system and the next one takes them anew, page by page.
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 (glibc 2.35, Linux with transparent huge pages for those who ask) makes that
pages of 2 MiB. Trains a few steps of a config's first stage in processes of their own, in turn without it and with
it; prints of each one its tokens a second (the median over the steps after the first ten), its page faults and its
peak resident memory (getrusage of Linux), and then

    ratio = median over the rounds of tokens/s with huge pages / the same without
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TUNABLES = {"plain": "", "huge": "glibc.malloc.hugetlb=1"}
SKIPPED, EVERY = 10, 5  # steps at the start, and between two measurements


def measure(tunables: str, config: str, stage: str, steps: int) -> tuple[float, int, float]:
    """(tokens/s, page faults, GB) of one process."""
    with tempfile.TemporaryDirectory() as workdir:
        flags = [f"--config={config}", f"--workdir={workdir}", f"--stage={stage}"]
        flags += [f"--config.{stage}.steps={steps}", f"--config.{stage}.log_every={EVERY}"]
        command, environment = [sys.executable, "-m", "mmjax", "train", *flags], {"GLIBC_TUNABLES": tunables}
        process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"mmjax train {' '.join(flags)} failed; run it to see why.")
        lines = map(json.loads, (Path(workdir) / stage / "metrics.jsonl").read_text().splitlines())
        speeds = [line["tokens_per_second"] for line in lines if line["step"] > SKIPPED]
    return statistics.median(speeds), usage.ru_minflt, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--stage", default="pretrain", help="the config's first stage")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    speeds: dict[str, list[float]] = {how: [] for how in TUNABLES}
    for number in range(1, args.rounds + 1):
        for how, tunables in TUNABLES.items():
            speed, faults, peak = measure(tunables, args.config, args.stage, args.steps)
            speeds[how].append(speed)
            print(f"{number} {how:5} {speed:8,.0f} tokens/s {faults:12,} page faults {peak:6.2f} GB", flush=True)
    huge, plain = (statistics.median(speeds[how]) for how in ("huge", "plain"))
    print(f"ratio {huge / plain:.2f} = {huge:,.0f} / {plain:,.0f} tokens/s")


if __name__ == "__main__":
    main()
