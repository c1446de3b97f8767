"""Taiyi, Stable Diffusion with a Chinese BERT: how such a checkpoint is recognised and loaded."""
