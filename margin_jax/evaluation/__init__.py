"""What an encoder is worth: embeddings of images, verification of pairs, retrieval."""
