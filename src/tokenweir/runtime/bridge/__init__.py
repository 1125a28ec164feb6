"""The wire between the server and its child: JSON-RPC 2.0 over a Unix socket, length-prefixed."""
