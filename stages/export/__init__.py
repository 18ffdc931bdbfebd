"""An artifact as a file for other programs: ONNX, TorchScript, or a folder for timm."""
