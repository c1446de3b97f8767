"""Accelerate a tiny UNet with random weights on the CPU, with and without a LoRA.

    python examples/accelerate_unet.py

Nothing is downloaded. The first run compiles for half a minute; later runs find its code.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import lib_accel
from lib_accel.model import presets
from lib_accel.model.unet import UNet
from lib_accel.runtime.lora.files import random_deltas, save_lora
from lib_accel.tools.checkpoints.reading import random_weights

architecture = presets.Structure(64, (1, 1), (1, 0), 1, 16, linear=False, res_blocks=1).build()
unet = UNet(architecture).adopt(random_weights(architecture, torch.float32, seed=0))
x, context = torch.randn(2, 4, 32, 32), torch.randn(2, 77, 16)
timesteps = torch.tensor([500.0, 500.0])

with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
    lora = Path(folder) / "style.safetensors"
    save_lora(lora, architecture, random_deltas(architecture, rank=4, seed=1))
    plain = unet(x, timesteps, context)
    with lib_accel.accelerate(unet) as accelerated:
        status = accelerated.wait()
        print(f"{status.architecture}: {status.state}, backend {status.backend}")
        print("largest difference:", (unet(x, timesteps, context) - plain).abs().max().item())
        with accelerated.lora([(lora, 0.8)]):
            print("with a LoRA:", (unet(x, timesteps, context) - plain).abs().max().item())
    print("exact after remove:", torch.equal(unet(x, timesteps, context), plain))
