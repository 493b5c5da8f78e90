"""`vsae report`: what SAEs learned, on one HTML page. Start reading at page.py."""
