"""The formats of exported models, and how their files end."""

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2"}
