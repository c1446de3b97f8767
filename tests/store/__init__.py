"""The artifact store and its exports."""
