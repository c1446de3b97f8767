"""LoRAs: reading their files, and merging them into weights in place."""
