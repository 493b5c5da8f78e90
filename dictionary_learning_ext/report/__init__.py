"""`vsae report`: what SAEs learned, on one HTML page. Start reading at page.py."""

from .page import write_report

__all__ = ["write_report"]
