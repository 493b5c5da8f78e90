"""`vsae report`: what SAEs learned, on one HTML page. Start reading at page.py."""

from .index_page import write_index
from .page import write_report

__all__ = ["write_index", "write_report"]
