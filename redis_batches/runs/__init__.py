"""From a doorbell to every outcome stored."""
