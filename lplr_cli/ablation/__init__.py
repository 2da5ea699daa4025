"""Sweeps over grids of configurations."""

from lplr_cli.ablation.sweep import Cell, failures, grid_cells, run_sweep

__all__ = ["Cell", "failures", "grid_cells", "run_sweep"]
