"""Dreams in a batch: what the single and the vector environment share."""
