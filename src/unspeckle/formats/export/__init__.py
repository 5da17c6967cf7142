"""Models for other programs: graphs for ONNX Runtime and OpenVINO, and a U-Net in the layout of diffusers."""
