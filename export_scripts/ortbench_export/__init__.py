"""Export language models from Hugging Face checkpoints to ONNX packages, without PyTorch and in bounded memory."""

__version__ = "0.1.0"
