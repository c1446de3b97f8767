"""The UNet itself: its architecture, read from names and shapes, and a clean implementation that borrows its weights."""
