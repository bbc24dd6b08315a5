"""Kill `metalad watch` again and again while images arrive, and count the results: one for each image.

python -m benchmarks.watch [--model MODEL] [--images FOLDER] [--count 500] [--kills 20] [--move] [--seconds 900]

A third of the files is written in pieces with pauses, a third is renamed into place, a third is copied; some are
overwritten with another image. The watcher is killed with `kill -9` at random times and started again; some starts are
killed before the model is loaded. Without --model, a small model is trained on the images that ship with metalad.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import metalad
from metalad.data.images import find_images
from metalad.pipelines.demo import DATA

PAUSES = (0.1, 0.4, 1.5)
"""Between the pieces of a file that is written slowly; the last is longer than a file takes to settle."""
PACE = 0.02
SETTLE = 0.5
ALARM = """
import json, os, sys
with open(os.environ["ALARMS"], "a") as file:
    file.write(json.dumps(json.load(sys.stdin)["id"]) + "\\n")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a run folder, a model file or an exported file")
    parser.add_argument("--images", type=Path, default=DATA / "test", help="a folder of images that are copied")
    parser.add_argument("--count", type=int, default=500, help="files that arrive")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--move", action="store_true", help="move the files into ok and ng, too")
    parser.add_argument("--seconds", type=float, default=900.0, help="give up after this time")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or small_model(Path(scratch))
        failures = run(arguments, model, Path(scratch))
    print("\n".join(failures) or "all checks passed")
    return 1 if failures else 0


def small_model(folder: Path) -> Path:
    """Train a model of a few milliseconds an image."""
    metalad.train(DATA, folder / "run", method="variation_model", image_size=64, device="cpu")
    return folder / "run"


def run(arguments: argparse.Namespace, model: Path, folder: Path) -> list[str]:
    """Let images arrive while the watcher is killed; return what is wrong with the results."""
    rng = random.Random(arguments.seed)
    inbox, out = folder / "inbox", folder / "out"
    inbox.mkdir()
    (folder / "alarm.py").write_text(ALARM)
    alarms = folder / "alarms"
    alarms.touch()
    command = [sys.executable, "-m", "metalad", "watch", str(model), str(inbox), "--out", str(out), "--settle"]
    command += [str(SETTLE), "--quiet", "--on-anomalous", f"{sys.executable} {folder / 'alarm.py'}"]
    command += ["--move", str(folder / "sorted")] if arguments.move else []
    environment = {**os.environ, "ALARMS": str(alarms), "OMP_NUM_THREADS": "1"}
    arrivals = Arrivals(find_images(arguments.images), inbox, arguments.count, random.Random(arguments.seed + 1))
    start = time.monotonic()
    arrivals.start()
    kills = kill_again_and_again(command, environment, out, arguments.kills, arrivals, rng, start + arguments.seconds)
    arrivals.join()
    last = [*command, "--once"]
    subprocess.run(last, env=environment, stdout=subprocess.DEVNULL, check=True, timeout=arguments.seconds)
    print(f"{len(arrivals.contents)} images: {arguments.count} files, {len(arrivals.overwritten)} overwritten once")
    print(f"{kills} kills in {time.monotonic() - start:.0f} s; {arrivals.slow} files were written in pieces")
    return check(out, inbox, folder / "sorted" if arguments.move else None, arrivals, alarms, kills, arguments.kills)


class Arrivals(threading.Thread):
    """Writes files in three ways; some are overwritten when they have been scored.

    contents: pairs of the name of a file and the SHA-256 of a content that it had. allowed: how many files are written
    until it is raised, so that images arrive during the whole time.
    """

    def __init__(self, images: Sequence[Path], inbox: Path, count: int, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self._images, self._inbox, self.count, self._rng = images, inbox, count, rng
        self.contents: set[tuple[str, str]] = set()
        self.slow, self.allowed = 0, 0
        self.overwritten: set[str] = set()

    def run(self) -> None:
        """Write all files."""
        writers: list[threading.Thread] = []
        for number in range(self.count):
            while number >= self.allowed:
                time.sleep(PACE)
            content = self._content(number)
            path = self._inbox / f"line {number % 3}" / f"{number:04}.jpg"
            path.parent.mkdir(exist_ok=True)
            self.contents.add((f"{path.parent.name}/{path.name}", hashlib.sha256(content).hexdigest()))
            if number % 3 == 0:
                self.slow += 1
                writer = threading.Thread(target=self._write_slowly, args=(path, content, self._rng.choice(PAUSES)))
                writer.start()
                writers.append(writer)
            elif number % 3 == 1:
                temporary = path.with_suffix(".part")
                temporary.write_bytes(content)
                temporary.rename(path)
            else:
                path.write_bytes(content)
            time.sleep(PACE)
        for writer in writers:
            writer.join()

    def _content(self, number: int) -> bytes:
        """Return a JPEG that no other file has: an image with a comment before its end."""
        content = self._images[number % len(self._images)].read_bytes()
        comment = f"image {number}".encode()
        if content[:2] == b"\xff\xd8":
            return content[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + content[2:]
        return content + comment

    def overwrite(self, name: str) -> None:
        """Replace a file that was scored with another image, once."""
        path = self._inbox / name
        if name not in self.overwritten and path.exists():
            content = self._content(self.count + len(self.overwritten))
            path.write_bytes(content)
            self.contents.add((name, hashlib.sha256(content).hexdigest()))
            self.overwritten.add(name)

    @staticmethod
    def _write_slowly(path: Path, content: bytes, pause: float) -> None:
        with path.open("wb") as file:
            for start in range(0, len(content), len(content) // 3 + 1):
                file.write(content[start : start + len(content) // 3 + 1])
                file.flush()
                time.sleep(pause)


def kill_again_and_again(
    command: Sequence[str],
    environment: dict[str, str],
    out: Path,
    kills: int,
    arrivals: Arrivals,
    rng: random.Random,
    deadline: float,
) -> int:
    """Start the watcher and kill it, until so many kills are done and all files have arrived; return the kills."""
    done = 0
    while done < kills and time.monotonic() < deadline:
        arrivals.allowed = -(-arrivals.count * (done + 1) // kills)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0.2, 2.0))  # while it starts
        else:
            wanted = number_of_results(out) + rng.randint(1, max(2, 2 * arrivals.count // kills))
            wanted = min(wanted, arrivals.allowed + len(arrivals.overwritten))
            while number_of_results(out) < wanted and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.1))
        process.kill()
        process.wait()
        done += 1
        if names := [name for name, _ in results(out)]:
            arrivals.overwrite(rng.choice(names))
    arrivals.allowed = arrivals.count
    return done


def results(out: Path) -> list[tuple[str, str]]:
    """Return the name of the file and the content of each result."""
    if not (out / "results.sqlite").exists():
        return []
    database = sqlite3.connect(out / "results.sqlite", timeout=30)
    try:
        rows = database.execute("SELECT file, sha256 FROM results WHERE error IS NULL ORDER BY id").fetchall()
    except sqlite3.OperationalError:  # killed before the tables were made
        rows = []
    database.close()
    return rows


def number_of_results(out: Path) -> int:
    return len(results(out))


def check(
    out: Path, inbox: Path, target: Path | None, arrivals: Arrivals, alarms: Path, kills: int, wanted: int
) -> list[str]:
    """Return what is wrong: lost or repeated results, incomplete files, missing alarms."""
    failures = [] if kills == wanted else [f"only {kills} of {wanted} kills within the time"]
    rows = results(out)
    twice = [row for row, count in collections.Counter(rows).items() if count > 1]
    lost, foreign = arrivals.contents - set(rows), set(rows) - arrivals.contents
    print(f"{len(rows)} results, {len(twice)} of them twice, {len(lost)} lost, {len(foreign)} of half-written files")
    failures += [f"{what}: {sorted(found)[:3]}" for what, found in (("twice", twice), ("lost", lost)) if found]
    failures += [f"of half-written files: {sorted(foreign)[:3]}"] if foreign else []
    database = sqlite3.connect(out / "results.sqlite")
    errors = database.execute("SELECT path, error FROM results WHERE error IS NOT NULL").fetchall()
    anomalous = {row[0] for row in database.execute("SELECT id FROM results WHERE is_anomalous")}
    pictures = [json.loads(row[0]) for row in database.execute("SELECT result FROM results WHERE error IS NULL")]
    moved = database.execute("SELECT file, sha256, moved_to FROM results WHERE error IS NULL").fetchall()
    pending = database.execute("SELECT count(*) FROM results WHERE command = 'pending'").fetchone()[0]
    database.close()
    failures += [f"unreadable: {errors[:3]}"] if errors else []
    missing = [picture["overlay"] for picture in pictures if not Path(picture["overlay"]).exists()]
    stray = [path for path in out.rglob(".*.tmp")]
    failures += [f"missing overlays: {missing[:3]}"] if missing else []
    failures += [f"temporary files: {stray[:3]}"] if stray else []
    ran = collections.Counter(json.loads(line) for line in alarms.read_text().splitlines())
    repeated = sum(count - 1 for count in ran.values())
    print(f"{len(anomalous)} anomalous, {len(ran)} alarms, {repeated} of them repeated, {pending} pending")
    failures += ["alarms are missing"] if anomalous - set(ran) or pending else []
    failures += ["alarms of good images"] if set(ran) - anomalous else []
    if target is not None:
        wrong = [row for row in moved if row[2] is None or sha256(Path(row[2])) != row[1]]
        left = [path for path in inbox.rglob("*") if path.is_file()]
        sorted_files = [path for path in target.rglob("*") if path.is_file()]
        print(f"{len(sorted_files)} files in ok and ng, {len(left)} left, {len(wrong)} moved wrongly")
        failures += [f"moved wrongly: {wrong[:3]}"] if wrong else []
        failures += [f"left: {left[:3]}"] if left else []
        failures += ["a file was moved twice"] if len(sorted_files) != len(rows) else []
    return failures


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
