"""Embedded synthetic lines: three parquet files, a page, and the script that makes them."""
