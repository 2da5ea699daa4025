"""What is said of the noise of mini-batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lplr_cli.reporting.text import number

if TYPE_CHECKING:
    from lplr_cli.analysis import NoiseFloor
    from lplr_cli.diagnostics import BatchNoise

# Where losses are read.
_READ_AT = {"epochs": "the ends of epochs", "steps": "every step", "own-batch": "each batch before its step"}


def noise_row(noise: BatchNoise) -> tuple[str, float | None, str]:
    """Name, value and meaning of the noise: beside the signal, or of single samples where no batch is known."""
    if noise.end.snr is None and noise.end.scale is not None:
        return "noise scale, end", noise.end.scale, "samples of a batch whose noise equals ‖∇L‖²; its size is not known"
    return "signal to noise, end", noise.end.snr, _meaning(noise)


def _meaning(noise: BatchNoise) -> str:
    """‖∇L‖² against the noise of a batch, and the batch at which noise stops mattering."""
    batch = "a batch" if noise.batch_size is None else f"a batch of {noise.batch_size:,}"
    text = f"‖∇L‖² over the noise of {batch}; {number(noise.start.snr, 3)} at the start"
    if noise.end.scale is not None:
        return f"{text}; a batch of about {number(noise.end.scale, 2)} has both equal"
    if noise.end.snr == 0:
        return f"{text}; no signal is resolved at the end"
    if noise.end.snr is None:
        return text
    return f"{text}; a batch {number(1 / noise.end.snr, 2)} times as large has both equal"


def floor_meaning(floor: NoiseFloor) -> str:
    """For which losses of which run."""
    how = "reshuffled epochs" if floor.sampling == "reshuffled" else "drawing with replacement"
    return f"predicted for batches of {floor.batch_size:,}, {how}, losses at {_READ_AT[floor.at]}"
