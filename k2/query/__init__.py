"""SQL over hot and cold rows."""
