"""What `compare.py` trains: the data sets, and the settings that every schedule is tuned over."""

# Of every cell that says nothing else; with a rate that falls to the end, the last epochs are no
# longer noise.
OPTIMISER = {"learning_rate": 3e-3, "learning_rate_schedule": "warmup_linear"}
REDUCTIONS = ("mean_active", "mean")
TUNING_SEEDS = (100, 101)

FEATURES = {
    "dataset": "vectors",
    "encoder": "head",
    "identities_per_batch": 32,
    "images_per_identity": 2,
    "epochs": 30,
    "learning_rate": 3e-4,
    "learning_rate_schedule": "constant",
}
# What every cell of a data set has in common. The networks are narrow, so that the grid is a matter
# of hours. An epoch of MNIST has 430 batches, all of its four training digits.
DATASETS = {
    "omniglot": {
        "dataset": "folder",
        "image_size": 28,
        "width": 0.5,
        "identities_per_batch": 16,
        "images_per_identity": 4,
        "epochs": 40,
    },
    "lfw": {
        "dataset": "folder",
        "image_size": 48,
        "width": 0.25,
        "identities_per_batch": 16,
        "images_per_identity": 4,
        "epochs": 40,
    },
    "cub": {
        "dataset": "folder",
        "image_size": 32,
        "width": 0.25,
        "split": "halves",
        "identities_per_batch": 16,
        "images_per_identity": 4,
        "augment": "flip",
        "epochs": 30,
    },
    "mnist": {
        "dataset": "tfds:mnist",
        "width": 0.25,
        "identities_per_batch": 4,
        "images_per_identity": 16,
        "epochs": 5,
    },
    # The published head on features of a network trained on ImageNet, with the published batches.
    "lfw_features": {**FEATURES},
    "cub_features": {**FEATURES, "split": "halves"},
}

# Where every seed draws its test anew, how many identities it has for one that is trained on.
TEST_TO_TRAIN = {"omniglot": 50 / 40, "lfw": 50 / 40, "lfw_features": 50 / 40, "mnist": 40 / 40}

NAMES = {
    "omniglot": "Omniglot",
    "lfw": "LFW",
    "lfw_faces": "LFW faces",
    "cub": "CUB-200-2011",
    "mnist": "MNIST",
    "lfw_features": "LFW faces, features",
    "cub_features": "CUB-200-2011, features",
    "emoji_features": "emoji, features",
    "icons_features": "icons, features",
}

# The same number of settings for each schedule, the last two as low and as high as all others have.
CANDIDATES = {
    "constant": [f"constant:{margin}" for margin in (0.02, 0.05, 0.2, 0.5, 0.01, 1)],
    "linear": [
        "linear:margin=0.05,margin_end=0.2",
        "linear:margin=0.05,margin_end=0.5",
        "linear:margin=0.2,margin_end=1",
        "linear:margin=0.5,margin_end=0.05",
        "linear:margin=0.02,margin_end=0.2",
        "linear:margin=0.5,margin_end=1",
    ],
    "dams": [
        "dams:margin=0.2,threshold=0.95,increase=0.05",
        "dams:margin=0.05,threshold=0.95,increase=0.05",
        "dams:margin=0.05,threshold=0.95,increase=0.01",
        "dams:margin=0.05,threshold=0.8,increase=0.05",
        "dams:margin=0.02,threshold=0.95,increase=0.01",
        "dams:margin=0.5,threshold=0.8,increase=0.05",
    ],
    "litm": [
        "litm:margin=0.02,margin_end=0.2",
        "litm:margin=0.05,margin_end=0.2",
        "litm:margin=0.05,margin_end=0.5",
        "litm:margin=0.2,margin_end=1",
        "litm:margin=0.02,margin_end=0.05",
        "litm:margin=0.5,margin_end=1",
    ],
    "target_easy_fraction": [
        *(
            f"target_easy_fraction:margin=0.05,target={target},low=0.02"
            for target in (0.8, 0.9, 0.95, 0.99)
        ),
        "target_easy_fraction:margin=0.02,target=0.99,low=0.01",
        "target_easy_fraction:margin=0.5,target=0.6,low=0.02",
    ],
    "exponential": [
        "exponential:margin=0.02,margin_end=0.2",
        "exponential:margin=0.05,margin_end=0.5",
        "exponential:margin=0.2,margin_end=1",
        "exponential:margin=0.5,margin_end=0.05",
        "exponential:margin=0.02,margin_end=0.05",
        "exponential:margin=0.5,margin_end=1",
    ],
    "cosine": [
        "cosine:margin=0.05,margin_end=0.2",
        "cosine:margin=0.05,margin_end=0.5",
        "cosine:margin=0.2,margin_end=1",
        "cosine:margin=0.5,margin_end=0.05",
        "cosine:margin=0.02,margin_end=0.2",
        "cosine:margin=0.5,margin_end=1",
    ],
    "automargin": [
        *(f"automargin:margin=0.05,k={k}" for k in (2, 4, 8, 16)),
        "automargin:margin=0.02,k=32",
        "automargin:margin=0.5,k=1",
    ],
    "quantile_margin": [
        *(
            f"quantile_margin:margin=0.05,quantile={quantile},low=0.02"
            for quantile in (0.01, 0.05, 0.1, 0.2)
        ),
        "quantile_margin:margin=0.02,quantile=0.01,low=0.01",
        "quantile_margin:margin=0.5,quantile=0.3,low=0.02",
    ],
}
DEFAULT = ("constant", "linear", "dams", "litm", "target_easy_fraction")
PUBLISHED = "dams:margin=0.2,threshold=0.95,increase=0.05"
# A lead of `gradient.py`, found with the seeds of the tuning.
FALLING = "exponential:margin=0.2,margin_end=0.01"
# With nothing to tune.
FIXED = {"dams as published": PUBLISHED, "falling, 0.2 to 0.01": FALLING}
