"""The selective scan of state-space models: one operation, several backends."""

from encoders.selective_scan.api import backend_for, list_backends, selective_scan

__all__ = ["backend_for", "list_backends", "selective_scan"]
