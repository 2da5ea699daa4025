"""``python -m benchmarks``: all reports as Markdown on stdout."""

from __future__ import annotations

import platform

import torch

from benchmarks import (
    certificate,
    kernel,
    large,
    lazy,
    noise_floor,
    peers,
    rates,
    recorder_overhead,
    scaling,
    sweeps,
    training_overhead,
)

if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print(f"## Training overhead\n\n{training_overhead.report()}\n")
    print(f"## Recorder\n\n{recorder_overhead.report()}\n")
    print(f"## Kernel\n\n{kernel.report()}")
    print(f"\n## Peers\n\n{peers.report()}")
    print(f"\n## ResNet\n\n{kernel.resnet_report()}")
    print(f"\n## Verified λ_min\n\n{large.report()}")
    print(f"\n## Scaling\n\n{scaling.report()}")
    print(f"\n## Certificate\n\n{certificate.report()}")
    print(f"\n## Sweeps\n\n{sweeps.report()}")
    print(f"\n## Rates\n\n{rates.report()}")
    print(f"\n## Hessian\n\n{peers.hessian_report()}")
    print(f"\n## Lazy runs\n\n{lazy.report()}")
    print(f"\n## Noise floor\n\n{noise_floor.report()}")
