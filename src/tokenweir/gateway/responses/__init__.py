"""OpenAI's Responses over chat completions: parameters in, and a fold of the request's events out."""
