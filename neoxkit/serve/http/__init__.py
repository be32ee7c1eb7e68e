"""OpenAI's API over HTTP, with vLLM's additions: what a service answers, as programs ask for it."""
