"""Models: the MLP and ResNet of the experiments, and the user's own by ``module:factory``."""

from lplr_cli.models.activations import ACTIVATIONS, SOFTPLUS_THRESHOLD, Softplus, activation_of, make_activation
from lplr_cli.models.infer import infer_mlp, load_weights, mlp_names, unwrap
from lplr_cli.models.mlp import INITS, MLP, PARAMETRIZATIONS
from lplr_cli.models.resnet import ResNet
from lplr_cli.models.spec import (
    DTYPES,
    ModelSpec,
    build_model,
    check_outputs,
    logits_alone,
    parameter_count,
    refuse_other_size,
    refuse_unnamed_code,
    take_logits,
)

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "INITS",
    "MLP",
    "PARAMETRIZATIONS",
    "SOFTPLUS_THRESHOLD",
    "ModelSpec",
    "ResNet",
    "Softplus",
    "activation_of",
    "build_model",
    "check_outputs",
    "infer_mlp",
    "load_weights",
    "logits_alone",
    "make_activation",
    "mlp_names",
    "parameter_count",
    "refuse_other_size",
    "refuse_unnamed_code",
    "take_logits",
    "unwrap",
]
