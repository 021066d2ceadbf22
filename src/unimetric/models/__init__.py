"""What turns an image into an embedding."""
