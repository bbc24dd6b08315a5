"""Studies: small experiments, each run by a script in `benchmarks/`, recorded as findings.

A finding is one line of a table: the column values in order, with commit, processor and torch version. The findings of
a study are in `benchmarks/results/studies/NAME.jsonl`; a page shows them between `<!-- table: study:NAME -->` and
`<!-- end table -->`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from metalad.pipelines.benchmark.machine import commit, machine
from metalad.runtime.errors import RunError
from metalad.runtime.files import write_text
from metalad.runtime.versions import versions

FOLDER = "studies"
PREFIX = "study:"
Value = str | int | float | None


@dataclass(frozen=True)
class Finding:
    """One line of a study's table, with the commit, the processor and the torch version that the values depend on."""

    values: Mapping[str, Value]
    commit: str | None = field(default_factory=commit)
    cpu: str = field(default_factory=lambda: str(machine(None)["cpu"]))
    torch: str = field(default_factory=lambda: versions(["torch"])["torch"])


def study_path(results: Path, name: str) -> Path:
    """Return the file of a study's findings in the results folder."""
    return results / FOLDER / f"{name}.jsonl"


def write_study(results: Path, name: str, findings: Sequence[Finding]) -> Path:
    """Write a study's findings, replacing earlier ones, and return the file.

    Raises:
        RunError: the file cannot be written.
    """
    path = study_path(results, name)
    write_text(path, "".join(json.dumps(asdict(finding), allow_nan=False) + "\n" for finding in findings))
    return path


def read_study(results: Path, name: str) -> list[Finding]:
    """Return a study's findings, none if there is no file.

    Raises:
        RunError: a line is not a finding.
    """
    path = study_path(results, name)
    try:
        return [Finding(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path}: not a file of findings ({error}); run the study's script again") from error


def study_cells(findings: Sequence[Finding]) -> list[list[str]]:
    """Return the table's rows of texts, the header first: floats with three digits, missing values as a dash."""
    columns = list(dict.fromkeys(name for finding in findings for name in finding.values))
    return [columns, *([_shown(finding.values.get(name)) for name in columns] for finding in findings)]


def study_origin(findings: Sequence[Finding]) -> str:
    """Return commits, torch versions and processors of the findings."""
    commits = sorted({(finding.commit or "unknown")[:8] for finding in findings})
    parts = [f"commit {name}" for name in commits]
    parts += sorted({f"torch {finding.torch}" for finding in findings}) + sorted({finding.cpu for finding in findings})
    return "; ".join(parts)


def _shown(value: Value) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
