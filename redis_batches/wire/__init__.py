"""A call as bytes, and back."""
