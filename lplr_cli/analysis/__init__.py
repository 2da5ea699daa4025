"""Finished runs and checkpoints, of lplr and of anyone: what they are, and what can be said of them."""

from lplr_cli.analysis.certificates import (
    RunCertificate,
    StartCertificate,
    certificate_of_run,
    certified_columns,
    certify_run,
    certify_start,
)
from lplr_cli.analysis.conclude import conclude
from lplr_cli.analysis.curvature import hessian_along, probe_hessian
from lplr_cli.analysis.hessian import HessianProbe, HessianSeries
from lplr_cli.analysis.lazy import LAZY, MOST_ROWS, LazyPrediction, predict_outputs, predict_run
from lplr_cli.analysis.logs import LogInput, read_log
from lplr_cli.analysis.noise import NoiseFloor, kept_floor, noise_floor
from lplr_cli.analysis.offline import probe_checkpoints
from lplr_cli.analysis.path import PathCertificate, certify_path
from lplr_cli.analysis.path_figures import PathFigures, keep, kept_path, kept_rows
from lplr_cli.analysis.recompute import recompute_gradients
from lplr_cli.analysis.replay import why_no_path
from lplr_cli.analysis.spectrum import KernelProbe, probe_checkpoint
from lplr_cli.analysis.step_rule import unit_rule
from lplr_cli.analysis.subject import OWN, Source, Subject, find_checkpoint, open_subject
from lplr_cli.analysis.summary import Certified, Summary, probe_pairs, run_facts, summarize, summary_of
from lplr_cli.analysis.trajectory import plain_step, trajectory_of

__all__ = [
    "LAZY",
    "MOST_ROWS",
    "OWN",
    "Certified",
    "HessianProbe",
    "HessianSeries",
    "KernelProbe",
    "LazyPrediction",
    "LogInput",
    "NoiseFloor",
    "PathCertificate",
    "PathFigures",
    "RunCertificate",
    "Source",
    "StartCertificate",
    "Subject",
    "Summary",
    "certificate_of_run",
    "certified_columns",
    "certify_path",
    "certify_run",
    "certify_start",
    "conclude",
    "find_checkpoint",
    "hessian_along",
    "keep",
    "kept_floor",
    "kept_path",
    "kept_rows",
    "noise_floor",
    "open_subject",
    "plain_step",
    "predict_outputs",
    "predict_run",
    "probe_checkpoint",
    "probe_checkpoints",
    "probe_hessian",
    "probe_pairs",
    "read_log",
    "recompute_gradients",
    "run_facts",
    "summarize",
    "summary_of",
    "trajectory_of",
    "unit_rule",
    "why_no_path",
]
