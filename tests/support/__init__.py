"""What tests of every folder borrow."""
