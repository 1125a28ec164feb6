"""The run directory: ``run.json``, the Parquet tables and what reads and writes them."""
