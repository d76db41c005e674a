"""Builders of models: those that the zoo makes from published weights, and small graphs for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import MissingExtraError

# --- From published weights ------------------------------------------------------------------------------------


def build(builder: str, members: Sequence[Path], shapes: Mapping[str, Sequence[int]], output: Path) -> None:
    """Write the ONNX file that torch's exporter makes of a published model.

    Args:
        builder: A name in ``BUILDERS``.
        members: Files of the recipe, in its order.
        shapes: Input shapes of the recipe; the exported model has just these.

    Raises:
        MissingExtraError: torch, onnxscript or transformers is not installed.
    """
    from graphopt.capture.torch_model import quiet

    torch = _torch()
    with quiet():
        module, examples = BUILDERS[builder](members, shapes)
        program = torch.onnx.export(
            module.eval(), examples, input_names=list(shapes), dynamo=True, verbose=False
        )
    program.save(str(output), external_data=False)


def _torch() -> Any:
    try:
        import onnxscript  # noqa: F401
        import torch
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "zoo") from error
    return torch


def ge2e(members: Sequence[Path], shapes: Mapping[str, Sequence[int]]) -> tuple[Any, tuple[Any, ...]]:
    """Speaker encoder: three LSTM layers, a projection of the last hidden state, on the unit sphere.

    Generalized End-to-End Loss for Speaker Verification, https://arxiv.org/abs/1710.10467.
    """
    torch = _torch()

    class SpeakerEncoder(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(40, 256, num_layers=3, batch_first=True)
            self.linear = torch.nn.Linear(256, 256)

        def forward(self, mels: Any) -> Any:
            _, (hidden, _) = self.lstm(mels)
            embedding = torch.relu(self.linear(hidden[-1]))
            return embedding / torch.norm(embedding, dim=1, keepdim=True)

    module = SpeakerEncoder()
    state = torch.load(members[0], map_location="cpu", weights_only=True)["model_state"]
    wanted = module.state_dict()
    module.load_state_dict({name: tensor for name, tensor in state.items() if name in wanted})
    return module, (torch.rand(*shapes["mels"]),)


def _crepe(
    members: Sequence[Path], shapes: Mapping[str, Sequence[int]], filters: Sequence[int]
) -> tuple[Any, tuple[Any, ...]]:
    """Six convolutions over 1024 samples, then 360 pitch bins of 20 cents.

    CREPE: A Convolutional Representation for Pitch Estimation, https://arxiv.org/abs/1802.06182.
    """
    torch = _torch()
    functional = torch.nn.functional

    class Crepe(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            channels = [1, *filters]
            for layer in range(6):
                kernel, stride = ((512, 1), (4, 1)) if layer == 0 else ((64, 1), (1, 1))
                convolution = torch.nn.Conv2d(channels[layer], channels[layer + 1], kernel, stride)
                self.add_module(f"conv{layer + 1}", convolution)
                # The epsilon of the Keras model that the weights come from.
                self.add_module(f"conv{layer + 1}_BN", torch.nn.BatchNorm2d(channels[layer + 1], eps=1e-3))
            self.classifier = torch.nn.Linear(4 * channels[-1], 360)

        def forward(self, frames: Any) -> Any:
            x = frames[:, None, :, None]
            for layer in range(1, 7):
                x = functional.pad(x, (0, 0, 254, 254) if layer == 1 else (0, 0, 31, 32))
                x = torch.relu(getattr(self, f"conv{layer}")(x))
                x = functional.max_pool2d(getattr(self, f"conv{layer}_BN")(x), (2, 1), (2, 1))
            x = x.permute(0, 2, 1, 3).reshape(-1, self.classifier.in_features)
            return torch.sigmoid(self.classifier(x))

    module = Crepe()
    module.load_state_dict(torch.load(members[0], map_location="cpu", weights_only=True))
    return module, (torch.randn(*shapes["frames"]),)


def crepe_tiny(members: Sequence[Path], shapes: Mapping[str, Sequence[int]]) -> tuple[Any, tuple[Any, ...]]:
    """The published model of the smallest capacity."""
    return _crepe(members, shapes, (128, 16, 16, 16, 32, 64))


def crepe_full(members: Sequence[Path], shapes: Mapping[str, Sequence[int]]) -> tuple[Any, tuple[Any, ...]]:
    """The published model of full capacity."""
    return _crepe(members, shapes, (1024, 128, 128, 128, 256, 512))


def minilm(members: Sequence[Path], shapes: Mapping[str, Sequence[int]]) -> tuple[Any, tuple[Any, ...]]:
    """The last hidden state of the BERT encoder, as transformers computes it and torch exports it."""
    torch = _torch()
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "zoo") from error
    # Not said by a logger or a stream that a caller could silence.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    bert = transformers.BertModel.from_pretrained(
        members[0].parent, local_files_only=True, add_pooling_layer=False
    )

    class Encoder(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.bert(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    batch, length = shapes["input_ids"]
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[:, length // 2 :] = 0
    return Encoder(), (torch.randint(1000, 30000, (batch, length)), mask, torch.zeros_like(mask))


BUILDERS: dict[str, Callable[[Sequence[Path], Mapping[str, Sequence[int]]], tuple[Any, tuple[Any, ...]]]] = {
    "ge2e": ge2e,
    "crepe_tiny": crepe_tiny,
    "crepe_full": crepe_full,
    "minilm": minilm,
}


# --- Small graphs for tests and benchmarks ----------------------------------------------------------------------

OPSET = 21


class _Graph:
    """Collects nodes and weights of a graph under construction."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._rng = np.random.default_rng(seed)
        self._count = 0

    def weight(self, *shape: int, scale: float | None = None) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        spread = scale if scale is not None else 1.0 / np.sqrt(max(fan_in, 1))
        return self.constant((self._rng.standard_normal(shape) * spread).astype(np.float32))

    def positive(self, *shape: int) -> str:
        return self.constant(self._rng.uniform(0.5, 1.5, shape).astype(np.float32))

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        output = f"v{self._count}"
        self._count += 1
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=f"n{output}", **attributes))
        return output

    def model(
        self,
        inputs: Mapping[str, tuple[int, Sequence[int | str]]],
        outputs: Sequence[str],
        *,
        opset: int = OPSET,
    ) -> Any:
        import onnx
        from onnx import TensorProto, helper

        names = {name: f"y{index}" if index else "y" for index, name in enumerate(outputs)}
        for node in self.nodes:
            for index, output in enumerate(node.output):
                node.output[index] = names.get(output, output)
            for index, source in enumerate(node.input):
                node.input[index] = names.get(source, source)
        graph = helper.make_graph(
            self.nodes,
            "built",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names.values()],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        if len(self.nodes) < 5000:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
            for output, found in zip(model.graph.output, inferred.graph.output, strict=True):
                output.CopyFrom(found)
        return model


def conv_net(channels: int = 8, blocks: int = 2, size: int | str = 16, seed: int = 0) -> Any:
    """Convolution, batch normalisation and ReLU, with residual additions, then a classifier. Input ``x``."""
    graph = _Graph(seed)
    x = graph.op("Conv", "x", graph.weight(channels, 3, 3, 3), pads=[1, 1, 1, 1])
    for _ in range(blocks):
        y = graph.op("Conv", x, graph.weight(channels, channels, 3, 3), pads=[1, 1, 1, 1])
        y = graph.op(
            "BatchNormalization",
            y,
            graph.positive(channels),
            graph.weight(channels, scale=0.1),
            graph.weight(channels, scale=0.1),
            graph.positive(channels),
        )
        x = graph.op("Add", graph.op("Relu", y), x)
    pooled = graph.op("Flatten", graph.op("GlobalAveragePool", x))
    y = graph.op("Gemm", pooled, graph.weight(10, channels), graph.weight(10, scale=0.1), transB=1)
    return graph.model({"x": (1, ["n", 3, size, size])}, [y])


def mlp(width: int = 16, layers: int = 3, batch: int | str = "n", seed: int = 0) -> Any:
    """MatMul, Add and ReLU. Input ``x`` of shape [batch, width]."""
    graph = _Graph(seed)
    x = "x"
    for _ in range(layers):
        x = graph.op("Add", graph.op("MatMul", x, graph.weight(width, width)), graph.weight(width, scale=0.1))
        x = graph.op("Relu", x)
    return graph.model({"x": (1, [batch, width])}, [graph.op("MatMul", x, graph.weight(width, 4))])


def transformer_block(width: int = 32, heads: int = 4, length: int | str = "s", seed: int = 0) -> Any:
    """Self-attention and a feed-forward layer, decomposed as exporters do. Input ``x`` of shape [n, length, width]."""
    graph = _Graph(seed)
    depth = width // heads
    split = graph.constant(np.array([0, 0, heads, depth], dtype=np.int64))
    join = graph.constant(np.array([0, 0, width], dtype=np.int64))

    def linear(source: str, size_in: int, size_out: int) -> str:
        product = graph.op("MatMul", source, graph.weight(size_in, size_out))
        return graph.op("Add", product, graph.weight(size_out, scale=0.1))

    def norm(source: str) -> str:
        axes = graph.constant(np.array([-1], dtype=np.int64))
        centred = graph.op("Sub", source, graph.op("ReduceMean", source, axes))
        squared = graph.op("Pow", centred, graph.constant(np.array(2.0, dtype=np.float32)))
        variance = graph.op("ReduceMean", squared, axes)
        shifted = graph.op("Add", variance, graph.constant(np.array(1e-5, dtype=np.float32)))
        scaled = graph.op("Div", centred, graph.op("Sqrt", shifted))
        return graph.op("Add", graph.op("Mul", scaled, graph.positive(width)), graph.weight(width, scale=0.1))

    def project(order: Sequence[int]) -> str:
        parts = graph.op("Reshape", linear("x", width, width), split)
        return graph.op("Transpose", parts, perm=list(order))

    query, key, value = project((0, 2, 1, 3)), project((0, 2, 3, 1)), project((0, 2, 1, 3))
    root = graph.constant(np.array(np.sqrt(depth), dtype=np.float32))
    weights = graph.op("Softmax", graph.op("Div", graph.op("MatMul", query, key), root), axis=-1)
    mixed = graph.op("Transpose", graph.op("MatMul", weights, value), perm=[0, 2, 1, 3])
    attended = norm(graph.op("Add", linear(graph.op("Reshape", mixed, join), width, width), "x"))
    hidden = linear(attended, width, 4 * width)
    erf = graph.op("Erf", graph.op("Div", hidden, graph.constant(np.array(np.sqrt(2), dtype=np.float32))))
    one = graph.constant(np.array(1.0, dtype=np.float32))
    half = graph.constant(np.array(0.5, dtype=np.float32))
    gelu = graph.op("Mul", graph.op("Mul", hidden, graph.op("Add", erf, one)), half)
    y = norm(graph.op("Add", linear(gelu, 4 * width, width), attended))
    return graph.model({"x": (1, ["n", length, width])}, [y])


def dynamic_net(seed: int = 0) -> Any:
    """Shapes computed in the graph (Shape, Gather, Concat, Reshape). Input ``x`` of shape [n, c, h, w], ``c`` 4."""
    graph = _Graph(seed)
    shape = graph.op("Shape", "x")
    batch = graph.op("Gather", shape, graph.constant(np.array([0], dtype=np.int64)))
    target = graph.op("Concat", batch, graph.constant(np.array([4, -1], dtype=np.int64)), axis=0)
    flat = graph.op("Reshape", "x", target)
    pooled = graph.op("ReduceMean", flat, graph.constant(np.array([2], dtype=np.int64)), keepdims=0)
    return graph.model({"x": (1, ["n", 4, "h", "w"])}, [graph.op("MatMul", pooled, graph.weight(4, 3))])


def branch_and_loop(seed: int = 0) -> Any:
    """An If whose branches capture outer values and hold constants, then a Loop. Inputs ``x`` [3], ``c``, ``k``."""
    from onnx import TensorProto, helper

    graph = _Graph(seed)
    scale = graph.weight(3)

    def branch(op_type: str, name: str) -> Any:
        two = helper.make_node("Constant", [], [f"{name}_c"], value_float=2.0)
        inner = helper.make_node(op_type, ["x", scale], [f"{name}_m"])
        last = helper.make_node("Mul", [f"{name}_m", f"{name}_c"], [name])
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [3])
        return helper.make_graph([two, inner, last], name, [], [value])

    chosen = graph.op("If", "c", then_branch=branch("Add", "then"), else_branch=branch("Mul", "else"))
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["sum", scale], ["sum_next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [3]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_next", TensorProto.FLOAT, [3]),
        ],
    )
    looped = graph.op("Loop", "k", "", chosen, body=body)
    model = graph.model({"x": (1, [3]), "c": (9, []), "k": (7, [])}, [looped])
    # Inference does not know that the loop keeps the shape.
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [3]))
    return model


def long_chain(nodes: int = 100_000, seed: int = 0) -> Any:
    """A graph of many cheap nodes with forks, constants and patterns to fuse. Input ``x`` of shape [4, 8]."""
    graph = _Graph(seed)
    weights = [graph.weight(8, scale=0.5) for _ in range(50)]
    half = graph.constant(np.array(0.5, dtype=np.float32))
    x = side = "x"
    for index in range(nodes):
        step = index % 8
        if step == 0:
            side = x
            x = graph.op("Mul", x, weights[index % 50])
        elif step in (1, 5):
            x = graph.op("Add", x, weights[index % 50])
        elif step == 2:
            x = graph.op("Sigmoid", x)
        elif step == 3:
            x = graph.op("Mul", x, side)
        elif step == 4:
            x = graph.op("Identity", x)
        elif step == 6:
            x = graph.op("Tanh", x)
        else:
            x = graph.op("Mul", x, half)
    return graph.model({"x": (1, [4, 8])}, [x])


def write_large(path: Path, gigabytes: float = 3.0, width: int = 4096, seed: int = 0) -> Path:
    """Write an MLP with that much external data, one weight at a time. Input ``x`` of shape [n, width].

    Returns:
        The path of the ``.onnx`` file; its weights are beside it in ``<name>.data``.
    """
    import onnx
    from onnx import helper

    rng = np.random.default_rng(seed)
    layers = max(1, round(gigabytes * 1e9 / (width * width * 4)))
    data_path = path.with_name(path.name + ".data")
    nodes, weights = [], []
    x = "x"
    with open(data_path, "wb") as data:
        for layer in range(layers):
            tensor = onnx.TensorProto(name=f"w{layer}", data_type=1, dims=[width, width])
            tensor.data_location = onnx.TensorProto.EXTERNAL
            entries = {"location": data_path.name, "offset": data.tell(), "length": width * width * 4}
            for key, content in entries.items():
                entry = tensor.external_data.add()
                entry.key, entry.value = key, str(content)
            (rng.standard_normal((width, width), dtype=np.float32) / np.float32(np.sqrt(width))).tofile(data)
            weights.append(tensor)
            output = "y" if layer == layers - 1 else f"v{layer}"
            nodes.append(helper.make_node("MatMul", [x, f"w{layer}"], [f"m{layer}"], name=f"matmul{layer}"))
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [output], name=f"relu{layer}"))
            x = output
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", 1, ["n", width])],
        [helper.make_tensor_value_info("y", 1, ["n", width])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path
