"""From latents to images: draws, solvers, samplers, pictures."""
