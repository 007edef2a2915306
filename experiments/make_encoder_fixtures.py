"""Records what timm computes, for `tests/test_pretrained.py`.

    pip install timm torch 'margin-jax[test]' && python experiments/make_encoder_fixtures.py

Weights, batch statistics and images are drawn by that test's own recipe, from the names of timm's
tensors. Written to `tests/fixtures/encoders.npz`: names and shapes of all tensors, and every fourth
feature of two images.

Recorded with timm 1.0.31 and torch 2.14.1 (CPU), all but EfficientNet-B0 and MobileNetV3 with torch
2.13.0, where these two are the same to the last bit.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import test_pretrained as recipe


def main() -> None:
    arrays = {}
    for name in recipe.TIMM:
        model = recipe.timm_model(name).eval()
        arrays[f"{name}.tensors"] = np.array(
            [f"{k} {','.join(map(str, v.shape)) or '-'}" for k, v in model.state_dict().items()]
        )
        arrays[f"{name}.features"] = recipe.timm_features(model, recipe.draw_images())[:, ::4]
    np.savez_compressed(recipe.FIXTURES, **arrays)
    print(f"{recipe.FIXTURES}: {recipe.FIXTURES.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
