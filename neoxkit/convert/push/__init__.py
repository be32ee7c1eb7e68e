"""Publishing models on the Hugging Face Hub. See docs/publishing.md."""
