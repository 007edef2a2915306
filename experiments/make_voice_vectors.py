"""Vectors of synthetic speakers: a public speech synthesiser, read by a public speaker encoder.

::

    apt install espeak-ng
    pip install resemblyzer
    python experiments/make_voice_vectors.py voices.npz
    margin-jax train --dataset vectors --data-dir voices.npz

A speaker is one of the variants of eSpeak NG's English voice, about a hundred. Each reads the same
sentences, every time at another pitch and speed, with some noise. Resemblyzer, whose weights come
with the package, computes 256 numbers from each recording (a d-vector, `Wan et al. 2018
<https://arxiv.org/abs/1710.10467>`_). These are not real voices: they show how to train on vectors
of speech, and say nothing about how well real people can be distinguished.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import scipy.io.wavfile
from resemblyzer import VoiceEncoder, preprocess_wav

SENTENCES = (
    "The north wind and the sun were disputing which was the stronger.",
    "A traveller came along wrapped in a warm cloak.",
    "They agreed that the one who first succeeded should be considered stronger.",
    "Then the north wind blew as hard as he could.",
    "The more he blew, the more closely did the traveller fold his cloak around him.",
    "At last the north wind gave up the attempt.",
    "Then the sun shone out warmly, and the traveller took off his cloak.",
    "And so the north wind was obliged to confess.",
    "Please call me back before seven o'clock this evening.",
    "My account number is four, nine, two, seven, five.",
    "The train to the coast leaves from platform three.",
    "She had bought apples, bread and a bottle of milk.",
)


def variants() -> list[str]:
    """The files of the variants of a voice."""
    listed = subprocess.run(
        ["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True
    )
    return sorted(line[48:].split()[0] for line in listed.stdout.splitlines()[1:])


def speak(variant: str, sentence: str, rng: np.random.Generator) -> np.ndarray:
    """A recording, float[samples] at 16 kHz, at a pitch and a speed near the usual ones."""
    pitch, speed = rng.integers(35, 66), rng.integers(140, 201)
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(
            [
                *("espeak-ng", "-v", f"en+{variant.removeprefix('!v/')}", "-w", file.name),
                *("-p", str(pitch), "-s", str(speed), sentence),
            ],
            check=True,
        )
        rate, samples = scipy.io.wavfile.read(file.name)
    sound = samples.astype(np.float32) / 2**15
    sound += rng.normal(scale=0.01, size=sound.shape).astype(np.float32)
    return preprocess_wav(sound, source_sr=rate)


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    rng = np.random.default_rng(0)
    encoder = VoiceEncoder("cpu", verbose=False)
    features, labels, files = [], [], []
    for variant in variants():
        name = variant.removeprefix("!v/")
        for number, sentence in enumerate(SENTENCES):
            features.append(encoder.embed_utterance(speak(variant, sentence, rng)))
            labels.append(name)
            files.append(f"{name}/{number:02d}")
        print(f"{name}: {len(labels):,} recordings", flush=True)
    np.savez(out, features=np.stack(features), labels=np.array(labels), files=np.array(files))


if __name__ == "__main__":
    main()
