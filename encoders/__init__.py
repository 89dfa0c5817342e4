"""Encoders: a DNA sequence or a scan in, features out.

Nothing here knows of subjects, of their files, or of training.
"""

from encoders.registry import list_encoders, load_encoder

__all__ = ["list_encoders", "load_encoder"]
