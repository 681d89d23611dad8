"""Search in a folder of one's own photos: the list of them, the index of their embeddings, queries."""
