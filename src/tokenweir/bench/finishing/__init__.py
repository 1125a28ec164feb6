"""From captured bytes to rows: a process per worker parses what its capture left, as it comes, behind all others."""
