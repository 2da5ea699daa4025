"""Curvature of the loss itself: sharpness."""

from lplr_cli.curvature.sharpness import Sharpness, sharpness, squared_loss

__all__ = ["Sharpness", "sharpness", "squared_loss"]
