"""Whole images, and what is around the UNet's steps in one: text encoder and VAE."""
