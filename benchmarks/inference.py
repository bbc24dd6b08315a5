"""Time `predict`, its parts, and the matrix products of the model alone.

python -m benchmarks.inference [--run RUN] [--image FILE] [--count 64]   images per second
python -m benchmarks.inference --count 2000 --memory                    the peak memory of the process, no timing

Run the second with two counts, in two processes: memory must not grow with the number of images.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from metalad.data.images import find_images, read_image, resize_image
from metalad.detectors.base import Detector
from metalad.detectors.inference import DetectorEngine
from metalad.detectors.out_of_fold import calibrate
from metalad.inference.stream import MAX_WORKERS, infer_stream
from metalad.methods import method_named
from metalad.nn.pixels import to_batch
from metalad.pipelines.benchmark.machine import peak_memory
from metalad.pipelines.demo import DATA
from metalad.pipelines.predict.saving import Writer, load_source
from metalad.pipelines.predict.sources import find_sources
from metalad.storage.model_file import read_model
from metalad.training.precision import product_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run folder; an untrained model by default")
    parser.add_argument("--method", default="metal", help="of the untrained model")
    parser.add_argument("--image", type=Path, default=find_images(DATA / "train")[0])
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--memory", action="store_true", help="print the peak memory only")
    arguments = parser.parse_args()
    detector = read_model(arguments.run).detector if arguments.run else untrained(arguments.method)
    with tempfile.TemporaryDirectory() as scratch:
        folder = copies(arguments.image, arguments.count, Path(scratch) / "images")
        end_to_end = time_predict(detector, folder, Path(scratch) / "out", arguments.batch_size)
        if arguments.memory:
            print(f"{arguments.count} images: peak memory {(peak_memory() or 0) / 1e6:.0f} MB")
            return
        print(f"{arguments.count} copies of {arguments.image.name}, {read_image(arguments.image).shape[:2]} pixels")
        print(f"predict, files written: {arguments.count / end_to_end:.1f} images/s")
        no_files = time_predict(detector, folder, Path(scratch) / "none", arguments.batch_size, files=False)
        print(f"predict, none written:  {arguments.count / no_files:.1f} images/s")
        decoding = seconds(lambda: decode(folder, detector.config.image_size))
        print(f"decoding alone:         {arguments.count / decoding:.1f} images/s")
    report_model(detector, arguments.batch_size)


def untrained(name: str) -> Detector:
    """Return a method with default settings, calibrated on noise: as fast as a trained model."""
    method = method_named(name)
    torch.manual_seed(0)
    detector = method.load()(method.load_config()())
    pixels = np.random.default_rng(0).integers(0, 256, (20, *detector.config.image_size, 3), np.uint8)
    calibrate(detector, pixels[:16], pixels[16:])
    return detector


def copies(image: Path, count: int, folder: Path) -> Path:
    """Make a folder of links to one image."""
    folder.mkdir(parents=True)
    for index in range(count):
        (folder / f"{index:06}{image.suffix}").symlink_to(image.absolute())
    return folder


def time_predict(detector: Detector, folder: Path, out: Path, batch_size: int, *, files: bool = True) -> float:
    """Return the seconds of predict over a folder, from the detector in memory to the last file written."""
    scoring = detector.config.scoring
    writer = Writer(out, scoring, detector.threshold(0.01, scoring), strict=True, maps=files, overlays=files)
    predictor = writer.predictor(DetectorEngine(detector), batch_size)
    start = time.perf_counter()
    for _ in infer_stream(predictor, find_sources([folder], out), load_source, writer.write):
        pass
    return time.perf_counter() - start


def decode(folder: Path, size: tuple[int, int]) -> None:
    """Decode and resize all images, in as many threads as `predict` uses."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_WORKERS)) as pool:
        for _ in pool.map(lambda path: resize_image(read_image(path), size).shape, find_images(folder)):
            pass


def report_model(detector: Detector, batch_size: int, repeats: int = 10) -> None:
    """Print the model's rate and its fraction of the machine's rate."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size, *detector.config.image_size, 3), np.uint8)

    def model() -> None:
        with torch.inference_mode():
            detector(to_batch(pixels)).score.sum().item()

    with FlopCounterMode(display=False) as counter, torch.no_grad():  # the counter does not work in inference mode
        detector(to_batch(pixels))
    operations = int(counter.get_total_flops())
    taken = min(seconds(model) for _ in range(repeats))
    rate = product_rate(torch.float32, size=2048)
    print(f"model alone:            {batch_size / taken:.1f} images/s, {torch.get_num_threads()} threads")
    print(
        f"a batch of {batch_size}: {operations / 1e9:.1f} GFLOP of products take {1e3 * operations / rate:.1f} ms at "
        f"{rate / 1e9:.0f} GFLOP/s; the model {1e3 * taken:.1f} ms; {operations / rate / taken:.0%} of that rate"
    )


def seconds(function: Callable[[], None]) -> float:
    """Return the duration of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
