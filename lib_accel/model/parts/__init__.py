"""What the layers of a UNet are made of."""
