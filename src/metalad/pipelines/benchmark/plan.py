"""The cells of a benchmark of methods × categories × seeds, and which of them are finished."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalad.data import data_hash, read_category
from metalad.methods import Method, method_named
from metalad.pipelines.benchmark.categories import named_categories
from metalad.pipelines.benchmark.cells import Cell, Configuration, Protocol, select_cells
from metalad.pipelines.benchmark.rows import ResultRow, latest, read_rows
from metalad.runtime.errors import ConfigError
from metalad.runtime.settings import from_texts

if TYPE_CHECKING:
    from metalad.detectors.base import DetectorConfig

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Plan:
    """All cells of a benchmark in the order of its table: category by category, method by method, seed by seed.

    selected: the cells to run if they are not finished.
    folders: the absolute folder of each category, by its name.
    configs: all settings of each cell, by its key.
    """

    cells: tuple[Cell, ...]
    selected: tuple[Cell, ...]
    folders: Mapping[str, Path]
    configs: Mapping[str, Mapping[str, Any]]

    def finished_rows(self, out: Path) -> dict[str, ResultRow]:
        """Return the rows in `out` of this plan's cells by their keys.

        A row of other images or other settings than those of the cell is left out: the cell has to run again.

        Raises:
            RunError: the rows cannot be read.
        """
        rows = latest(read_rows(out / ROWS))
        hashes: dict[str, str] = {}
        finished = {}
        for cell in self.cells:
            row, category = rows.get(cell.key), cell.category or ""
            if row is None or row.config != self.configs[cell.key]:
                continue
            if category not in hashes:
                samples = read_category(self.folders[category], seed=cell.seed)
                hashes[category] = data_hash((*samples.train, *samples.test))
            if row.data["all"] == hashes[category]:
                finished[cell.key] = row
        return finished

    def summary(self) -> str:
        """Return the numbers of cells in one line."""
        configurations = {cell.configuration for cell in self.cells}
        seeds = {cell.seed for cell in self.cells}
        return (
            f"{len(configurations)} methods x {len(self.folders)} categories x {len(seeds)} seeds = "
            f"{len(self.cells)} cells, {len(self.selected)} selected"
        )


def plan_benchmark(
    methods: "Sequence[str | DetectorConfig]",
    data: Sequence[str | Path],
    *,
    seeds: int = 1,
    settings: Sequence[str] = (),
    protocol: Protocol = "default",
    only: Sequence[str] = (),
) -> Plan:
    """Return the plan of a benchmark; see `benchmark` for the arguments.

    Raises:
        ConfigError: an argument is invalid. DataError: a folder is not a category with training and test images.
    """
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}; it must be at least 1")
    if protocol not in ("default", "paper"):
        raise ConfigError(f"protocol is {protocol!r}; it must be default or paper")
    configurations = _configurations(methods, settings, protocol)
    folders = named_categories(data)
    configs = {
        Cell(configuration, category, seed, protocol): config
        for category, folder in folders.items()
        for configuration, config in _sized(configurations, folder).items()
        for seed in range(seeds)
    }
    cells = tuple(configs)
    return Plan(cells, select_cells(cells, only), folders, {cell.key: configs[cell] for cell in cells})


def _configurations(
    wanted: "Sequence[str | DetectorConfig]", settings: Sequence[str], protocol: Protocol
) -> "dict[Configuration, tuple[DetectorConfig, bool]]":
    """Return a configuration per method, its config, and whether the image size is chosen from the images."""
    if not wanted:
        raise ConfigError("no method is given; `metalad methods` lists them")
    from metalad.pipelines.resolution import is_automatic_for, without_automatic_size  # imports torch

    found = [_method_and_config(each, without_automatic_size(settings)) for each in wanted]
    names = [method.name for method, _ in found]
    unused = [text for text in settings if not any(_has_setting(name, text) for name in wanted)]
    if unused:
        raise ConfigError(f"none of the methods {', '.join(names)} has the setting {unused[0]!r}")
    configurations = {}
    for each, (method, config) in zip(wanted, found, strict=True):
        texts = _changed_settings(config)
        label = " ".join([method.name, *texts]) if names.count(method.name) > 1 else method.name
        configurations[Configuration(label, method.name, texts)] = config, is_automatic_for(each, settings, protocol)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if len(configurations) < len(found):
        raise ConfigError(f"the method {twice[0]} is given twice with the same settings; give each method once")
    return configurations


def _sized(
    configurations: "Mapping[Configuration, tuple[DetectorConfig, bool]]", folder: Path
) -> dict[Configuration, Mapping[str, Any]]:
    """Return the settings for one category as JSON values."""
    from metalad.pipelines.resolution import resized, sizes_of  # imports torch

    is_needed = any(automatic for _, automatic in configurations.values())
    sizes = sizes_of(read_category(folder).train) if is_needed else []
    return {
        configuration: json.loads(json.dumps(dataclasses.asdict(resized(config, sizes if automatic else [])[0])))
        for configuration, (config, automatic) in configurations.items()
    }


def _method_and_config(wanted: "str | DetectorConfig", settings: Sequence[str]) -> "tuple[Method, DetectorConfig]":
    if isinstance(wanted, str):
        method = method_named(wanted)
        return method, from_texts(method.load_config(), [text for text in settings if _has_setting(wanted, text)])
    from metalad.pipelines.config import method_and_config  # imports torch

    return method_and_config(wanted, {})


def _has_setting(wanted: "str | DetectorConfig", text: str) -> bool:
    name, separator, _ = text.partition("=")
    if not separator:
        raise ConfigError(f"setting {text!r} has no value; write NAME=VALUE")
    if not isinstance(wanted, str):  # a config is used as it is
        return False
    return name in {field.name for field in dataclasses.fields(method_named(wanted).load_config())}


def _changed_settings(config: "DetectorConfig") -> tuple[str, ...]:
    """Return the settings that differ from their defaults, as `NAME=VALUE`."""
    return tuple(
        f"{field.name}={_text(getattr(config, field.name))}"
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    )


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
