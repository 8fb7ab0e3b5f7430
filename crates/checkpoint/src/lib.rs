//! Safetensors checkpoints with atomic writes and strict name and shape checks.
