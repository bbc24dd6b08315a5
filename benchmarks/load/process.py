"""The service and `metalad predict` as processes."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METALAD = [sys.executable, "-m", "metalad"]
START_SECONDS = 120.0
_ADDRESS = re.compile(r"listening on http://\S+?:(\d+) ")
_STOPPED = re.compile(r"stopped: (\d+) requests accepted, (\d+) answered, (\d+) closed")


class ServiceProcess:
    """`metalad serve` on a free port of the loopback interface."""

    def __init__(self, model: Path, *options: str) -> None:
        with tempfile.NamedTemporaryFile(suffix=".log", delete=False) as log:
            self.log = Path(log.name)
            command = [*METALAD, "serve", f"model={model}", "--port", "0", *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.port = self._wait_for_port()

    def _wait_for_port(self) -> int:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            if found := _ADDRESS.search(self.log.read_text(encoding="utf-8")):
                return int(found[1])
            time.sleep(0.05)
        self.process.kill()
        raise SystemExit(f"the service did not start:\n{self.log.read_text(encoding='utf-8')}")

    def resident_bytes(self) -> int:
        """Return the resident memory of the process."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii")
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def processor_seconds(self) -> float:
        """Return the processor time that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)

    def totals(self) -> tuple[int, int, int]:
        """Return the numbers of accepted, answered and closed requests that the service logged when it ended."""
        found = _STOPPED.search(self.log.read_text(encoding="utf-8"))
        assert found is not None, self.log.read_text(encoding="utf-8")[-2000:]
        return int(found[1]), int(found[2]), int(found[3])

    def tracebacks(self) -> int:
        """Return how many tracebacks the log has."""
        return self.log.read_text(encoding="utf-8", errors="replace").count("Traceback (most recent call last)")


def predict_offline(model: Path, folder: Path, out: Path) -> tuple[dict[str, float], float]:
    """Return the scores of `metalad predict` by file name, and its images per second after the first image."""
    command = [*METALAD, "predict", str(model), str(folder), "--out", str(out), "--no-maps", "--no-overlays"]
    scores: dict[str, float] = {}
    with subprocess.Popen([*command, "--json", "--quiet"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        times = []
        for line in process.stdout:
            times.append(time.perf_counter())
            result = json.loads(line)
            scores[Path(result["path"]).name] = result["score"]
    if process.returncode or len(times) < 2:
        raise SystemExit(f"`metalad predict` ended with {process.returncode} after {len(times)} images")
    return scores, (len(times) - 1) / (times[-1] - times[0])
