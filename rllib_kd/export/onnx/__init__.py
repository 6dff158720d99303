"""Students as ONNX: from the description of their layers, or by torch's exporter; and with integers."""
