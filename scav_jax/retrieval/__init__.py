"""A trained model in use: embeddings of clips and files, validation, results."""
