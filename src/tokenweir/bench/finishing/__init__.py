"""From captured bytes to rows: a process per worker parses what the capture left, as it comes, at the lowest priority."""
