"""What every HTTP door of ours shares: one request and its answer, errors in OpenAI's body, a bounded server."""
