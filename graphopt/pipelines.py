"""What ``fold``, ``fuse`` and ``O0`` to ``O2`` are. Reads top to bottom.

A group is a list of stages. A stage is one transaction of the pass manager: a single pass, or rewrites that run
together until none applies any more. Rounds are stages that run in turn as long as that brings something.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.pipeline.base import Pass

PASSES: Mapping[str, str] = {
    "add-into-bias": "graphopt.passes.add_into_bias:AddIntoBias",
    "add-zero": "graphopt.passes.no_op_arithmetic:AddZero",
    "affine-after-pool": "graphopt.passes.affine_after_pool:AffineAfterPool",
    "attention": "graphopt.passes.attention:Attention",
    "attention-bias": "graphopt.passes.attention_bias:AttentionBias",
    "attention-scale": "graphopt.passes.attention_scale:AttentionScale",
    "batchnorm-before-conv": "graphopt.passes.batchnorm_before_conv:BatchNormBeforeConv",
    "batchnorm-into-conv": "graphopt.passes.batchnorm_into_conv:BatchNormIntoConv",
    "cast-chain": "graphopt.passes.cast_chain:CastChain",
    "concat-chain": "graphopt.passes.concat_chain:ConcatChain",
    "consecutive-linear": "graphopt.passes.consecutive_linear:ConsecutiveLinear",
    "constant-fold": "graphopt.passes.constant_fold:ConstantFold",
    "correct-bias": "graphopt.passes.correct_bias:CorrectBias",
    "cse": "graphopt.passes.cse:CommonSubexpressions",
    "dead-code": "graphopt.passes.dead_code:DeadCode",
    "distill": "graphopt.passes.distill:Distill",
    "div-to-mul": "graphopt.passes.div_to_mul:DivToMul",
    "einsum": "graphopt.passes.einsum:Einsum",
    "elementwise-constants": "graphopt.passes.elementwise_constants:ElementwiseConstants",
    "equalize": "graphopt.passes.equalize:Equalize",
    "expand-before-broadcast": "graphopt.passes.mask_expand:MaskExpand",
    "float16": "graphopt.passes.float16:Float16",
    "gelu": "graphopt.passes.gelu:Gelu",
    "gelu-tanh": "graphopt.passes.gelu_tanh:GeluTanh",
    "groupnorm": "graphopt.passes.groupnorm:GroupNorm",
    "hardsigmoid": "graphopt.passes.hardsigmoid:HardSigmoid",
    "hardswish": "graphopt.passes.hardswish:HardSwish",
    "identity": "graphopt.passes.identity:EliminateIdentity",
    "if-constant": "graphopt.passes.if_constant:IfConstant",
    "instancenorm": "graphopt.passes.instancenorm:InstanceNorm",
    "layernorm": "graphopt.passes.layernorm:LayerNorm",
    "loop-invariant": "graphopt.passes.loop_invariant:LoopInvariant",
    "loop-sequence": "graphopt.passes.loop_sequence:LoopSequence",
    "low-rank": "graphopt.passes.low_rank:LowRank",
    "matmul-add-to-gemm": "graphopt.passes.matmul_add_to_gemm:MatMulAddToGemm",
    "mish": "graphopt.passes.mish:Mish",
    "no-op-arithmetic": "graphopt.passes.no_op_arithmetic:NoOpArithmetic",
    "no-op-layout": "graphopt.passes.no_op_layout:NoOpLayout",
    "onnxsim": "graphopt.passes.simplify:Simplify",
    "pad-into-conv": "graphopt.passes.pad_into_conv:PadIntoConv",
    "prelu": "graphopt.passes.prelu:PRelu",
    "prune": "graphopt.passes.prune:Prune",
    "quantize": "graphopt.passes.quantize:Quantize",
    "quantize-dynamic": "graphopt.passes.quantize_dynamic:QuantizeDynamic",
    "quantize-weights": "graphopt.passes.quantize_weights:QuantizeWeights",
    "relu-chain": "graphopt.passes.relu_chain:ReluChain",
    "reshape-chain": "graphopt.passes.reshape_chain:ReshapeChain",
    "residual-bias": "graphopt.passes.residual_bias:ResidualBias",
    "rmsnorm": "graphopt.passes.rmsnorm:RmsNorm",
    "rotary-embedding": "graphopt.passes.rotary:Rotary",
    "round-weights": "graphopt.passes.round_weights:RoundWeights",
    "scale-before-conv": "graphopt.passes.scale_before_conv:ScaleBeforeConv",
    "scale-into-conv": "graphopt.passes.scale_into_conv:ScaleIntoConv",
    "shape-fold": "graphopt.passes.shape_fold:ShapeFold",
    "shift-before-conv": "graphopt.passes.shift_before_conv:ShiftBeforeConv",
    "sigmoid": "graphopt.passes.sigmoid:Sigmoid",
    "silu": "graphopt.passes.silu:Silu",
    "slice-chain": "graphopt.passes.slice_chain:SliceChain",
    "smooth": "graphopt.passes.smooth:Smooth",
    "softmax": "graphopt.passes.softmax:Softmax",
    "softmax-guard": "graphopt.passes.softmax_guard:SoftmaxGuard",
    "softplus": "graphopt.passes.softplus:SoftplusThreshold",
    "softsign": "graphopt.passes.softsign:Softsign",
    "sparsify": "graphopt.passes.sparsify:Sparsify",
    "squeeze-excite": "graphopt.passes.squeeze_excite:SqueezeExcite",
    "subnormals": "graphopt.passes.subnormals:Subnormals",
    "transpose-chain": "graphopt.passes.transpose_chain:TransposeChain",
    "transpose-into-gemm": "graphopt.passes.transpose_into_gemm:TransposeIntoGemm",
    "transpose-sinking": "graphopt.passes.transpose_sinking:TransposeSinking",
    "where-constant": "graphopt.passes.where_constant:WhereConstant",
}
"""Every built-in pass and rewrite by name."""


@dataclass(frozen=True)
class Stage:
    """One transaction.

    Attributes:
        name: In the report.
        members: Names of one pass, or of rewrites that run together.
    """

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Rounds:
    """Stages that run in turn as long as the first of them changes something.

    Attributes:
        stages: The first is one pass; the others run after it has changed something, and only then.
        most: Rounds at most.
    """

    stages: tuple[Stage, ...]
    most: int


@dataclass(frozen=True)
class GroupOptions:
    """Options of every group.

    Attributes:
        disable: Members to leave out.
    """

    disable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Stages that go by one name.

    Attributes:
        parts: In order.
        requires: Groups that run before, unless they have run.
    """

    parts: tuple[Stage | Rounds, ...]
    requires: tuple[str, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage, those of rounds once."""
        parts = ((part,) if isinstance(part, Stage) else part.stages for part in self.parts)
        return tuple(itertools.chain.from_iterable(parts))

    def is_repeated(self, stage: Stage) -> bool:
        """Whether a stage is one of rounds."""
        return any(isinstance(part, Rounds) and stage in part.stages for part in self.parts)

    def build(self, find: Callable[[str], Any], disabled: frozenset[str]) -> list[Pass]:
        """The passes of the group, without the members ``disabled``.

        Args:
            find: From a name to the class.
        """
        passes: list[Pass] = []
        for part in self.parts:
            passes += (
                _build(part, find, disabled) if isinstance(part, Stage) else _rounds(part, find, disabled)
            )
        return passes


def _rounds(rounds: Rounds, find: Callable[[str], Any], disabled: frozenset[str]) -> list[Pass]:
    passes: list[Pass] = []
    last: Pass | None = None
    for _ in range(rounds.most):
        made = [pass_ for stage in rounds.stages for pass_ in _build(stage, find, disabled)]
        if rounds.stages[0].name in disabled:
            return made
        made[0].after, last = last, made[0]
        for pass_ in made[1:]:
            pass_.after = last
        passes += made
    return passes


def _build(stage: Stage, find: Callable[[str], Any], disabled: frozenset[str]) -> list[Pass]:
    from graphopt.pipeline.base import RewritePass
    from graphopt.rewrite import Rewrite

    classes = [find(name) for name in stage.members if name not in disabled]
    rewrites = [cls() for cls in classes if issubclass(cls, Rewrite)]
    passes = [cls() for cls in classes if not issubclass(cls, Rewrite)]
    return [*passes, RewritePass(stage.name, rewrites)] if rewrites else passes


_NO_OPS = (
    "identity",
    "no-op-layout",
    "no-op-arithmetic",
    "cast-chain",
    "transpose-chain",
    "reshape-chain",
    "slice-chain",
    "concat-chain",
    "relu-chain",
    "where-constant",
    "expand-before-broadcast",
)

_FOLD = (
    Stage("onnxsim", ("onnxsim",)),
    Stage("constant-fold", ("constant-fold",)),
    Stage("shape-fold", ("shape-fold",)),
    Stage("constant-fold", ("constant-fold",)),
    # A branch that is chosen gives shapes that were not known, and these choose others.
    Rounds(
        (
            Stage("if-constant", ("if-constant",)),
            Stage("shape-fold", ("shape-fold",)),
            Stage("constant-fold", ("constant-fold",)),
        ),
        most=8,
    ),
    Stage("no-ops", _NO_OPS),
    Stage("cse", ("cse",)),
    Stage("dead-code", ("dead-code",)),
    Stage("loop-invariant", ("loop-invariant",)),
    Stage("subnormals", ("subnormals",)),
)

_FUSE = (
    Stage("loop-sequence", ("loop-sequence",)),
    Stage(
        "activations and norms",
        (
            "sigmoid",
            "silu",
            "gelu",
            "gelu-tanh",
            "hardswish",
            "hardsigmoid",
            "softplus",
            "mish",
            "softsign",
            "prelu",
            "softmax",
            "instancenorm",
            "layernorm",
            "rmsnorm",
            "groupnorm",
            "squeeze-excite",
        ),
    ),
    Stage("attention", ("einsum", "expand-before-broadcast", "rotary-embedding", "attention")),
    Stage("attention biases", ("residual-bias", "attention-bias", "attention-scale")),
    Stage("softmax-guard", ("softmax-guard",)),
    Stage("transposes", ("transpose-sinking", "transpose-into-gemm", "transpose-chain")),
    Stage(
        "affine",
        (
            "pad-into-conv",
            "batchnorm-into-conv",
            "scale-into-conv",
            "add-into-bias",
            "scale-before-conv",
            "shift-before-conv",
            "batchnorm-before-conv",
            "affine-after-pool",
            "consecutive-linear",
            "add-zero",
            "div-to-mul",
            "elementwise-constants",
        ),
    ),
    Stage("gemm", ("matmul-add-to-gemm",)),
    # Rewrites ask for sizes of what only they read, and some shapes are known by their result alone.
    Stage("shape-fold", ("shape-fold",)),
    Stage("no-ops", _NO_OPS),
    Stage("cse", ("cse",)),
    Stage("dead-code", ("dead-code",)),
)

GROUPS: Mapping[str, Group] = {
    "fold": Group(_FOLD),
    "fuse": Group(_FUSE, requires=("fold",)),
}
"""What serves one backend only is part of its target's legalisation."""

PIPELINES: Mapping[str, tuple[str, ...]] = {
    "O0": (),
    "O1": ("fold",),
    "O2": ("fold", "fuse"),
}
