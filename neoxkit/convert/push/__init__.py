"""Publishing models on the Hugging Face Hub, and results of their evaluation. See docs/publishing.md."""

from neoxkit.convert.push.card import add_results, check_results_can_be_added

__all__ = ["add_results", "check_results_can_be_added"]
