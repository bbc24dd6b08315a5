"""Time and peak memory of one large picture, with the backbone's maps computed in tiles and computed whole.

python -m benchmarks.tiles [--size 1344,2016] [--threads 2] [--repeats 3]

Fits `metal_features` on resized photographs of the demo, and scores one in two further processes. The time is that from
pixels to score and map. CPU seconds depend less than time on what else the machine does; memory is the peak of the
process minus what it has before the picture.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import metalad
from metalad.data.images import find_images, read_image, resize_image
from metalad.detectors.inference import DetectorEngine
from metalad.nn import backbone_tiles
from metalad.pipelines.benchmark.machine import peak_memory
from metalad.pipelines.demo import DATA
from metalad.storage.model_file import read_model

TRAINING_IMAGES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1344,2016", help="height and width")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3, help="the shortest time of this many is printed")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(*measured(arguments.run, arguments.threads, arguments.repeats, whole=arguments.whole))
        return
    height, width = (int(side) for side in arguments.size.split(","))
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "model.safetensors"
        metalad.fit(pictures(TRAINING_IMAGES, (height, width)), image_size=(height, width)).save(run)
        own = [sys.executable, "-m", "benchmarks.tiles", "--run", str(run)]
        own += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
        rows = [
            [float(value) for value in subprocess.run([*own, *more], capture_output=True, check=True).stdout.split()]
            for more in (["--whole"], [])
        ]
    print(f"one picture of {height}x{width}, {arguments.threads} threads, load of the machine {os.getloadavg()[0]:.1f}")
    for name, row in zip(("whole", "tiles"), rows, strict=True):
        print(f"{name}: {row[0]:.2f} s, {row[1]:.2f} CPU seconds, of these backbone {row[2]:.2f}; {row[3]:.0f} MB")
    ratios = [tiles / whole for whole, tiles in zip(*rows, strict=True)]
    print("tiles / whole: time {:.2f}, CPU seconds {:.2f}, backbone {:.2f}, memory {:.2f}".format(*ratios))


def measured(run: Path, threads: int, repeats: int, *, whole: bool) -> tuple[float, float, float, float]:
    """Return seconds, CPU seconds, CPU seconds of the backbone, and peak memory in MB of one picture."""
    torch.set_num_threads(threads)
    if whole:
        backbone_tiles.WHOLE = sys.maxsize
    detector = read_model(run).detector
    engine = DetectorEngine(detector)
    pixels = np.stack(pictures(1, engine.image_size))
    before = peak_memory() or 0
    in_backbone, starts = [], []
    backbone = detector.get_submodule("backbone")
    backbone.register_forward_pre_hook(lambda *_: starts.append(time.process_time()))
    backbone.register_forward_hook(lambda *_: in_backbone.append(time.process_time() - starts[-1]))
    seconds, processor = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        engine.infer(pixels, ("calibrated",))
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return min(seconds), min(processor), min(in_backbone), ((peak_memory() or 0) - before) / 1e6


def pictures(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Return photographs of the demo at this size."""
    return [resize_image(read_image(path), size) for path in find_images(DATA / "train")[:count]]


if __name__ == "__main__":
    main()
