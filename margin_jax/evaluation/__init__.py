"""What an encoder is worth: embeddings of images, and verification of pairs."""
