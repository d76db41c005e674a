"""An ONNX file  ==>  OpenVINO IR, in a process of its own: a converter that crashes takes nobody with it.

What the frontend gets wrong and can be mended is mended here: equal elements keep their order in TopK, as ONNX wants.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from graphopt.errors import TargetError
from graphopt.processes import SilentError, run_once
from graphopt.targets.openvino.executable import PACKED, reason_of

_TIMEOUT = 600.0


def convert(source: Path, target: Path, outputs: int) -> list[str]:
    """Write the IR of an ONNX file.

    Args:
        source: The ONNX file.
        target: The ``.xml.gz`` file; the weights lie beside it as ``.bin``, in full precision.
        outputs: How many the model has.

    Returns:
        Names of the inputs that OpenVINO keeps, in its order: what nothing reads is left out.

    Raises:
        TargetError: OpenVINO cannot take the model; its words name the node.
    """
    try:
        done = run_once("graphopt.targets.openvino.convert", str(source), str(target), seconds=_TIMEOUT)
    except SilentError as error:
        raise TargetError(f"OpenVINO did not convert the model within {_TIMEOUT:g} s") from error
    if done.code:
        raise TargetError(
            f"OpenVINO cannot take the model: {done.output.strip() or done.last_words}",
            hint="compile it for another target: --target ort-cpu",
        )
    found = json.loads(done.output)
    if found["outputs"] != outputs:
        raise TargetError(f"OpenVINO makes {found['outputs']} outputs of the model's {outputs}")
    return list(found["inputs"])


def main() -> None:
    """``convert SOURCE TARGET``: writes the IR; prints the inputs and the number of outputs, or why not."""
    import openvino

    source, target = sys.argv[1:]
    try:
        model = openvino.Core().read_model(source)
        keep_order_of_equals(model)
        text = Path(target).with_suffix("")
        openvino.save_model(model, text, compress_to_fp16=False)
        pack(text)
    except Exception as error:  # openvino raises RuntimeError and others
        print(reason_of(error))
        sys.exit(1)
    names = [parameter.get_friendly_name() for parameter in model.get_parameters()]
    print(json.dumps({"inputs": names, "outputs": len(model.outputs)}))


def pack(file: Path) -> None:
    """Compress a file of XML, in place and under another name: of a small quantized model, text is nearly half."""
    packed = gzip.compress(file.read_bytes(), mtime=0)
    file.with_name(file.name + PACKED).write_bytes(packed)
    file.unlink()


def keep_order_of_equals(model: Any) -> None:
    """Make every TopK of an ``openvino.Model`` stable, those in bodies of loops and branches too."""
    from openvino import opset11

    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind in ("If", "Loop", "TensorIterator"):
            bodies = (0, 1) if kind == "If" else (None,)
            for body in bodies:
                keep_order_of_equals(node.get_function() if body is None else node.get_function(body))
        if kind != "TopK":
            continue
        about = node.get_attributes()
        stable = opset11.topk(
            node.input_value(0),
            node.input_value(1),
            about["axis"],
            about["mode"],
            "value" if about["sort"] == "none" else about["sort"],
            about["index_element_type"],
            stable=True,
        )
        stable.set_friendly_name(node.get_friendly_name())
        for old, new in zip(node.outputs(), stable.outputs(), strict=True):
            names = old.get_names()
            old.replace(new)
            new.set_names(names)


if __name__ == "__main__":
    main()
