"""Files of callers: sent as multipart forms, kept in pieces, sealed as bodies are."""
