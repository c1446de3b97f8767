"""How measurements are shown: in words, as bars, as a page."""
