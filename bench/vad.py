"""What voice activity costs: milliseconds of one core per window of 32 ms, by the size of the portions.

python -m bench.vad
"""

import argparse
import time

import numpy as np

from omni.audio.vad import WINDOW, VoiceActivity, load


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.vad", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of sound (default: %(default)s)")
    args = parser.parse_args()
    samples = np.random.default_rng(0).normal(0, 0.1, int(args.seconds * 16_000)).astype(np.float32)
    for windows in (1, 3, 10):
        ear, portion = VoiceActivity(load()), windows * WINDOW
        start = time.perf_counter()
        heard = sum(len(ear.push(samples[i : i + portion])) for i in range(0, len(samples), portion))
        print(f"portions of {32 * windows:4d} ms: {1000 * (time.perf_counter() - start) / heard:.3f} ms a window")


if __name__ == "__main__":
    main()
