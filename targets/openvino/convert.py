"""An ONNX file  ==>  OpenVINO IR, in a process of its own: a converter that crashes takes nobody with it.

The names of the model's inputs and outputs are compared on the way: OpenVINO drops an input that has a default value,
and merges outputs that are the same tensor, of which the caller would learn nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from graphopt.errors import TargetError

_TIMEOUT = 600.0


def convert(source: Path, target: Path, inputs: int, outputs: int) -> None:
    """Write the IR of an ONNX file.

    Args:
        source: The ONNX file.
        target: The ``.xml`` file; the weights lie beside it as ``.bin``, in full precision.
        inputs, outputs: How many the model has.

    Raises:
        TargetError: OpenVINO cannot take the model; its words name the node.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "graphopt.targets.openvino.convert", str(source), str(target)],
            capture_output=True, text=True, env=environment, timeout=_TIMEOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"OpenVINO did not convert the model within {_TIMEOUT:g} s") from error
    if done.returncode:
        words = done.stdout.strip() or f"its converter ended with exit code {done.returncode}"
        raise TargetError(f"OpenVINO cannot take the model: {words}")
    found = json.loads(done.stdout)
    if found != {"inputs": inputs, "outputs": outputs}:
        raise TargetError(
            f"OpenVINO makes {found['inputs']} inputs and {found['outputs']} outputs of the model's {inputs} and {outputs}"
        )


def main() -> None:
    """``convert SOURCE TARGET``: writes the IR, prints the number of inputs and outputs, or why not."""
    import openvino

    source, target = sys.argv[1:]
    try:
        model = openvino.Core().read_model(source)
        openvino.save_model(model, target, compress_to_fp16=False)
    except Exception as error:  # openvino raises RuntimeError and others
        print(reason(error))
        sys.exit(1)
    print(json.dumps({"inputs": len(model.inputs), "outputs": len(model.outputs)}))


def reason(error: BaseException) -> str:
    """OpenVINO's message in one line: its last words, without source locations."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [
        line for line in lines if line and not line.startswith(("Exception from src", "Check '", "[Core]"))
    ]
    return " ".join(" ".join(kept).split())[:600] or type(error).__name__


if __name__ == "__main__":
    main()
