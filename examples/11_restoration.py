"""Mend images with a classifier: noise taken out, a missing half filled in, by chains that are told what is known.

What one learns: a density restores what was never shown damaged. Denoising adds ||x - noisy||^2 / (2 deviation^2) to
E(x), inpainting moves the missing pixels alone. Beside it stands what a Gaussian fitted to the images does, in dB of
PSNR: the JEM takes out more noise. Filled halves are samples, and a sample is further from the truth than a mean is.
"""

import sys
from pathlib import Path

import torch

from jemstone import Session, energy_gradient, generator, load_dataset, recipe
from jemstone.data import grid
from jemstone.sampling import denoise, inpaint

NOISE, DEVIATION = 0.6, 4.0  # the deviation was chosen on the validation split: the chains are colder than T = 1


def psnr(x, truth):
    """Mean over images, in dB."""
    return float((-10 * ((x - truth) / 2).square().flatten(1).mean(dim=1).log10()).mean())


def main(steps=1200, folder="runs/examples"):
    data = load_dataset("digits")
    session = Session.start(recipe("jem-small").with_values(steps=steps), data)
    for _ in session.train():
        pass
    x, rng = data.test.inputs, generator(0, "restoration")
    energy_grad, sampler = energy_gradient(session.model.eval()), session.sampler

    noisy = (x + NOISE * torch.randn(x.shape, generator=rng)).clamp(-1, 1)
    denoised = denoise(energy_grad, sampler, noisy, 30, rng, deviation=DEVIATION)
    known = (torch.arange(8) < 4)[:, None].expand(1, 8, 8)  # the upper half
    torn = torch.where(known, x, torch.rand(x.shape, generator=rng) * 2 - 1)
    filled = inpaint(energy_grad, sampler, torn, known, 100, rng)

    flat = data.train.inputs.flatten(1)
    mean, cov, k = flat.mean(dim=0), flat.T.cov() + 1e-3 * torch.eye(64), known.flatten()
    wiener = mean + (noisy.flatten(1) - mean) @ torch.linalg.solve(cov + NOISE**2 * torch.eye(64), cov)
    gain = torch.linalg.solve(cov[k][:, k], cov[k][:, ~k])
    guessed = torn.flatten(1).clone()
    guessed[:, ~k] = mean[~k] + (guessed[:, k] - mean[k]) @ gain
    stages = {"noisy": noisy, "denoised": denoised, "denoised by a Gaussian": wiener.clamp(-1, 1).view_as(x)}
    stages |= {"torn": torn, "filled": filled, "filled by a Gaussian": guessed.clamp(-1, 1).view_as(x)}
    found = {name: psnr(image, x) for name, image in stages.items()}
    for name, value in found.items():
        print(f"{name:23} {value:5.1f} dB")
    Path(folder).mkdir(parents=True, exist_ok=True)
    rows = [x[:12], *(image[:12] for image in stages.values())]  # from above: the truth, then as printed
    grid(torch.cat(rows), columns=12).save(Path(folder) / "restoration.png")
    return found | {"kept": torch.equal(filled[..., :4, :], x[..., :4, :])}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
