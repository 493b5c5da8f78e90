"""What SAEs learned, on one page: `vsae report`. Start reading at page.py."""

from .page import write_report

__all__ = ["write_report"]
