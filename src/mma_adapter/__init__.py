"""The Multi-Modal Adapter (MMA, CVPR 2024) for Hugging Face CLIP-like models."""

__version__ = "0.1.0"
