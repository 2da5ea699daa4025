"""Verdicts: requirement expressions over a command's JSON."""

from lplr_cli.audit.requirements import Failure, Requirement, check_requirements, parse_requirement

__all__ = ["Failure", "Requirement", "check_requirements", "parse_requirement"]
