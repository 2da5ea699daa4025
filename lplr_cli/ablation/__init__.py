"""Sweeps over grids of configurations, where they run, and the paper's experiments as presets."""

from lplr_cli.ablation.executors import Executor, InProcess, LocalProcesses, RayCluster
from lplr_cli.ablation.expected import expected_seconds
from lplr_cli.ablation.grid import OPTIONS, Cell, grid_cells, read_grid
from lplr_cli.ablation.presets import Preset, preset
from lplr_cli.ablation.recover import departures, smaller_step
from lplr_cli.ablation.statements import Statement
from lplr_cli.ablation.sweep import failures, read_sweep, run_sweep

__all__ = [
    "OPTIONS",
    "Cell",
    "Executor",
    "InProcess",
    "LocalProcesses",
    "Preset",
    "RayCluster",
    "Statement",
    "departures",
    "expected_seconds",
    "failures",
    "grid_cells",
    "preset",
    "read_grid",
    "read_sweep",
    "run_sweep",
    "smaller_step",
]
