"""gpt-neox's configuration: every option that it has had, what each means here, and its files read into a run."""
