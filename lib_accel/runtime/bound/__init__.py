"""Compiled layers bound to the live weights of a network, and the UNet that they make up."""
