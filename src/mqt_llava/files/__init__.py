"""Files that a killed program leaves in order. Nothing here knows what is in them."""
