"""What people do to waiting calls."""
