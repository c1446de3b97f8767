"""VAEs: the decoder and the encoder, two networks made of the same kinds of layers."""
