"""What one app and process share."""
