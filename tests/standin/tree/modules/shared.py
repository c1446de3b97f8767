"""Settings, flags, and the hypernetworks that are active."""

from __future__ import annotations

import argparse

from modules import options, shared_state

OptionInfo = options.OptionInfo
options_section = options.options_section

parser = argparse.ArgumentParser()
parser.add_argument("--api-auth")
parser.add_argument("--cors-allow-origins")
parser.add_argument("--cors-allow-origins-regex")
cmd_opts = argparse.Namespace()

options_templates = options_section(
    ("compatibility", "Compatibility"),
    {"lora_functional": OptionInfo(False, "Lora: use old method")},
)
options_templates |= options_section(
    ("sd", "Stable Diffusion"),
    {
        "sd_unet": OptionInfo("Automatic", "SD Unet"),
        "upcast_attn": OptionInfo(False, "Upcast cross attention layer to float32"),
        "localization": OptionInfo("None", "Localization"),
        "CLIP_stop_at_last_layers": OptionInfo(1, "Clip skip"),
    },
)
opts = options.Options(options_templates)
state = shared_state.State()
loaded_hypernetworks: list[object] = []
