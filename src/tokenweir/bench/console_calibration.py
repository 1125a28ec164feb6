"""What a calibration prints."""

from __future__ import annotations

import click

from tokenweir.bench.records.model import Calibration


def show_calibration(calibration: Calibration) -> None:
    """Print a calibration."""
    one = calibration
    click.echo(
        f"client error against true send times at {one.streams} streams ({one.timestamp_source} timestamps)\n"
        f"  TTFT error      p50 {one.ttft_error_p50_ms:.4f} ms, p99 {one.ttft_error_p99_ms:.4f} ms\n"
        f"  ITL error       p99 {one.itl_error_p99_ms:.4f} ms\n"
        f"  dispatch lag    p99 {one.dispatch_lag_p99_ms:.4f} ms (open loop)\n"
        f"ceiling of this client on this machine\n"
        f"  chunks captured {one.chunks_per_cpu_s:,.0f} per CPU-second\n"
        f"  rows written    {one.rows_per_cpu_s:,.0f} chunks per CPU-second\n"
        f"  requests        {one.requests_per_cpu_s:,.0f} per CPU-second, not streamed"
    )
