"""fasttrain: turn a diffusion model into a one-step generator.

Diffusion training is generative pre-training; freezing most of the U-Net's convolutions and
fine-tuning the rest against a GAN objective is enough for one-step generation (D2O-F, "Revisiting
Diffusion Models: From Generative Pre-training to One-Step Generation", ICML 2025).

    fasttrain demo            # the whole story on a laptop
"""

import os

from fasttrain.system.threads import spin_briefly

spin_briefly(os.environ)  # here, because it counts only before torch is imported

__version__ = "0.1.0"
__all__ = ["__version__"]
