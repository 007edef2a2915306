"""Bad input, of every kind that people have: one line that names what was wrong, and status 2.

Every row runs in this process, and none gets as far as training. Rows about runs that are damaged
after they were finished are in `test_evaluate`; other ones, with more of a story, in `test_cli`.
"""

import dataclasses
import json
import re
import shlex

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import margin_jax as mj
from margin_jax import cli
from margin_jax.runs import fit
from margin_jax.runs.folder import CHANGEABLE

INTEGERS = (
    *("image-size", "bits", "max-identities", "memory", "memory-warmup", "epochs", "seed"),
    *("identities-per-batch", "images-per-identity", "fillers", "microbatch", "freeze", "devices"),
    "patience",
    *("embedding-size", "checkpoint-steps"),
)
NUMBERS = (*("margin", "margin-end", "learning-rate", "width", "memory-limit"),)
CHOICES = {
    "dataset": ("glyph", "glyphs"),
    "repeated-names": ("merg", "merge"),
    "fit": ("padd", "pad"),
    "transparency": ("whit", "white"),
    "schedule": ("dmas", "dams"),
    "distance": ("euclid", "euclidean"),
    "loss": ("tripelt", "triplet"),
    "reduction": ("mean-active", "mean_active"),
    "mining": ("semi-hard", "semihard"),
    "optimizer": ("adm", "adam"),
    "learning-rate-schedule": ("constnat", "constant"),
    "small-identities": ("dorp", "drop"),
    "sampler": ("balance", "balanced"),
    "augment": ("flop", "flip"),
    "encoder": ("small-cnn", "small_cnn"),
    "dtype": ("float16", "bfloat16"),
    "select": ("acc", "auc"),
}

# What is typed after `margin-jax`, and what has to be said of it.
ROWS = [
    *((f"train --{name} x", f"'--{name}': Input should be a valid integer") for name in INTEGERS),
    *((f"train --{name} x", f"'--{name}': Input should be a valid number") for name in NUMBERS),
    *((f"train --{name} 2.5", f"'--{name}': Input should be a valid int") for name in INTEGERS),
    *((f"train --{name} nan", f"--{name} must be at least 0; got nan") for name in NUMBERS),
    *((f"train --{name} -1", f"--{name} must be at least") for name in (*INTEGERS, *NUMBERS)),
    *(
        (f"train --{name} {wrong}", f"{name.replace('-', '.')} must be one of .*Did you mean '{r}'")
        for name, (wrong, r) in CHOICES.items()
    ),
    *((f"train --{name}", f"'--{name}' requires an argument") for name in ("out", "data-dir")),
    # too much
    ("train --margin inf", r"--margin must be at most 1e\+38; got inf"),
    ("train --fmr x", "'--fmr': Input should be a valid number"),
    ("train --fmr nan", "--fmr must be at least 1e-06; got nan"),
    ("train --fmr 0.6", "--fmr must be at most 0.5; got 0.6"),
    ("train --fmr 0.0000001", "--fmr must be at least 1e-06; got 1e-07"),
    (
        "train --max-identities 60 --identities-per-batch 8 --fmr 0.001",
        r"--fmr needs at least 10,000 different pairs for a threshold at 0.001, so that 10 match "
        r"falsely; got 5,184 of 9 identities: choose a larger rate, or more validation "
        r"identities \(--split",
    ),
    ("train --learning-rate inf", "--learning-rate must be at most"),
    ("train --learning-rate 0", "--learning-rate must be above 0"),
    ("train --width 0", "--width must be above 0"),
    ("train --seed 4294967296", "--seed must be at most 4294967295"),
    ("train --epochs 99999999999999999999", "--epochs must be at most 1000000; got 9999"),
    ("train --image-size 100000000", "--image-size must be at most 16384; got 1"),
    ("train --bits 17", "--bits must be at most 16"),
    ("train --memory 1000000", "--memory must be at most 92681"),
    ("train --embedding-size 10000000000", "--embedding-size must be at most 65536"),
    ("train --devices 99", "--devices must be at most 8, all there are"),
    ("train --identities-per-batch 10000000", "set --identities-per-batch to at most 243"),
    ("train --images-per-identity 10000000", "lower --images-per-identity"),
    ("train --fillers 10000000", "--fillers must be between 0 and 0"),
    *(
        (f"train --{name} 99999999999999999999", f"--{name} must be at most [0-9]*; got 9999")
        for name in INTEGERS
    ),
    ("train --width 1e30", r"--width must be above 0 and at most 100; got 1e\+30"),
    ("train --encoder small_cnn:width=1e30", "--width must be above 0 and at most 100; got"),
    ("train --encoder head:hidden=99999999999999999999,dropout=0", "head takes sizes up to 65,536"),
    ("features --batch-size 99999999999999999999", "batch.size must be at least 1 and at most"),
    ("compare --seeds 99999999999999999999", "--seeds must be at most 2,147,483,647; got 9999"),
    ("evaluate old --data-dir flat --seed -1", "'--seed': Input should be greater than or equal"),
    ("verify old one.png one.png --threshold -1", "'--threshold': Input should be greater than"),
    ("search old one.png --threshold -1", "'--threshold': Input should be greater than or equal"),
    # what does not go together
    ("train --margin 0,2", "'--margin': Input should be a valid number"),
    ("train --strict yes", r"unexpected extra argument\(s\) \(yes\)"),
    ("train glyphs", r"unexpected extra argument\(s\) \(glyphs\)"),
    ("train --allow-changes", "--allow-changes is for resume; got it without"),
    ("train --overwrite --resume", "--overwrite and --resume cannot be used together"),
    ("train --memory-warmup 5", "--memory-warmup is for memory; got 5 without it"),
    ("train --width 2 --encoder mlp", "--width is for small_cnn; got it with encoder mlp"),
    ("train --small-stem --encoder mlp", "--small-stem is for efficientnet_b0"),
    ("train --freeze 1", "--freeze is for encoders with a head of their own"),
    ("train --microbatch 24", "--microbatch must divide the batch, here of 64 rows; got 24"),
    ("train --pretrained", "must be one of efficientnet_b0, .*; got 'small_cnn'"),
    ("train --encoder efficientnet_b0 --weights no.safetensors", "--weights .* there is no file"),
    ("train --encoder efficientnet_b0 --weights one.png", "--weights .* cannot read .*one.png"),
    ("train --coordinator host", "--coordinator must be HOST:PORT; got host"),
    # names of options
    ("train --margni 1", "No such option: --margni .*--margin"),
    ("train --identites-per-batch 2", r"\(Possible options: --identities-per-batch\)"),
    ("train --lr 1", "--lr; here that is --learning-rate"),
    ("train --batch-size 64", "that is --identities-per-batch times --images-per-identity"),
    ("train --gpus 2", "--gpus; here that is --devices"),
    ("train --no-such", "No such option: --no-such"),
    ("export flat --lr 3", r"No such option: --lr \(Possible options: --help\)"),
    ("search old one.png --k 10", "No such option: --k\\b(?!.*here that is)"),
    ("evaluate flat --batch-size 8", "No such option: --batch-size(?!.*here that is)"),
    ("compare --schedule dams", "nothing is varied, .*: give --schedules or --vary"),
    ("compare --schedules dams", "at least two arms; got dams. One run: margin-jax train"),
    ("compare --seed 1", "No such option: --seed .*--seeds"),
    ("evaluate flat --pair x", "No such option: --pair .*--pairs"),
    ("datasets describe glyphs --epochs 3", "No such option: --epochs"),
    ("schedules plot --outt x", "No such option: --outt .*--out"),
    # names of commands, and what they need
    ("trian", "No such command 'trian'. Did you mean 'train'"),
    ("datasets list", "No such command 'list'"),
    ("schedules list", "No such command 'list'"),
    ("evaluate", "Missing argument 'RUN'"),
    ("embed", "Missing argument 'RUN'"),
    ("embed flat", "Missing argument 'folder'"),
    ("verify flat", "Missing argument 'IMAGE'"),
    ("datasets describe", "Missing argument 'name'"),
    # schedules as text
    ("train --schedule dams:x", "NAME:KEY=VALUE,...; got 'dams:x', where margin is not a number"),
    ("train --schedule dams:margin=", "where margin is not a number"),
    ("train --schedule dams:nan", "--margin must be at least 0; got nan"),
    ("train --schedule dams:-1", "--margin must be at least 0; got -1"),
    ("train --schedule constant:inf", r"--margin must be at most 1e\+38; got inf"),
    ("train --schedule dams:margin=0.1 --margin 3", "--margin must be 0.1, as schedule dams:marg"),
    (
        "compare --vary margin=0.1,0.3 --schedules constant:0.2",
        "--margin must be 0.2, as schedule constant:0.2 says; got 0.1",
    ),
    ("train --schedule dams:margni=1", "parameter of dams must be .*Did you mean 'margin'"),
    ("train --schedule dams:margin=1,margin=2", "each parameter once; got .* margin twice"),
    ("train --schedule dams:0.2,0.3", "parameter of dams must be one of .*; got '0.3'"),
    ("train --schedule dams:threshold=2", "threshold must be between 0 and 1; got 2"),
    ("train --schedule dams:increase=nan", "increase must be finite and at least 0"),
    ("train --schedule constant:threshold=1", "parameter of constant must be one of margin;"),
    ("train --schedule linear:epochs=0", "--epochs must be between 1 and 1,000,000; got 0"),
    ("train --schedule linear:epochs=2.5", "where epochs is not a whole number"),
    ("train --schedule exponential:0", "exponential needs margins above 0"),
    ("train --schedule quantile_margin:quantile=2", "quantile must be between 0 and 1; got 2"),
    (
        "train --schedule quantile_margin --loss arcface",
        "schedule quantile_margin is for losses that count triplets of embeddings; got it with "
        "loss arcface",
    ),
    ("train --histogram --loss fisher_triplet", "histogram is for losses that count triplets of"),
    ("train --schedule own", "a schedule object and schedule='own' in the configuration must be"),
    ("train --optimizer own", "an optimizer object and optimizer='own' in the configuration must"),
    ("train --schedule automargin:k=nan", "k must be above 1e-6 and below 1e38; got nan"),
    ("train --mining all,11", "--mining must give the kind of triplets from epoch 1 on"),
    ("train --mining all,x:hard", "--mining is a kind, or kinds by first epoch"),
    ("train --mining all,3:hard,2:all", "--mining must give the kind .* by increasing epochs"),
    ("train --augment shift", "--augment must be shift:PIXELS, a whole number from 1 on"),
    ("train --augment crop:nan", "--augment must be crop:SHARE, a number between 0 and 1"),
    ("train --augment flip,flip", "--augment must have each part once"),
    ("compare --schedules dmas", "must be one of constant, .*Did you mean 'dams'"),
    (
        "compare --schedules dams,dams",
        "schedule must be varied over at least one value, each once; got",
    ),
    ("compare --seeds 0", "--seeds must be at least one"),
    ("compare --schedules ''", "schedule must be one of constant, .*; got ''"),
    ("compare --seeds x", "'--seeds': Input should be a valid integer"),
    ("schedules plot dams:x", "where margin is not a number"),
    ("schedules plot --stimulus stp", "--stimulus must be one of .*Did you mean 'step'"),
    (
        "schedules plot --stimulus step --history flat",
        "--stimulus and --history cannot be used toge",
    ),
    ("schedules plot --epochs 3 --history old", "--epochs and --history cannot be used together"),
    ("schedules plot --epochs 1", "--epochs must be between 2 and 1,000,000; got 1"),
    ("schedules plot --margin nan", "--margin must be finite and at least 0; got nan"),
    # losses
    ("train --loss arcfase", "--loss must be one of triplet, .*Did you mean 'arcface'"),
    ("train --loss arcface:scale=0", "scale must be above 0 and finite; got 0"),
    ("train --loss arcface:s=3", "a parameter of arcface must be one of scale; got 's'"),
    ("train --loss arcface --reduction mean", "--reduction is for .*; got mean with loss arcface"),
    ("train --loss cosface --distance manhattan", "--distance is for .* with loss cosface"),
    ("train --loss cosface --mining hard", "--mining is for .*; got hard with loss cosface"),
    ("train --loss cosface --memory 9", "--memory is for losses over triplets; got it with loss"),
    ("train --loss balancing_margin --margin -1", "--margin must be at least 0; got -1"),
    ("train --loss balancing_margin:tau=-1", "tau must be at least 0 and finite; got -1"),
    ("train --loss balancing_margin:beta=1", "beta must be at least 0 and below 1; got 1"),
    ("train --loss balancing_margin:counts=3", "must be one of scale, tau, .*; got 'counts'"),
    ("train --loss balancing_margin:reweight_from=x", "where reweight_from is not a whole number"),
    ("train --loss supcon:temperature=0", "temperature must be above 0 and finite; got 0"),
    ("train --loss supcon --memory 9", "--memory is for losses over triplets"),
    ("train --loss transplant:tau=-1", "tau must be at least 0 and finite; got -1"),
    ("train --loss transplant --distance euclidaen", "--distance must be one of"),
    ("train --loss fisher_triplet:lam=0", "lam must be above 0 and at most 1; got 0"),
    ("train --loss fisher_contrastive:lam=1.5", "lam must be above 0 and at most 1; got 1.5"),
    ("train --loss fisher_triplet --mining hard", "--mining is for .*; got hard with loss fisher"),
    (
        "train --loss dynamic_soft_margin:bins=1",
        "bins must be a whole number from 2 to 65,536; got 1",
    ),
    ("train --loss dynamic_soft_margin:momentum=0", "momentum must be above 0 and at most 1; got"),
    # splits
    *(
        (f"train --split {text}", "--split must be percentages of training, .*; got")
        for text in ("40/10/60", "40/10", "a/b/c", "40/-10/70", "nan/10/50", "thirds", "''")
    ),
    ("train --split no.json", "cannot read the split .*no.json: No such file"),
    ("train --split folder.json", "cannot read the split .*folder.json: Is a directory"),
    ("train --split cut.json", "cut.json is not JSON: Expecting"),
    ("train --split empty.json", "empty.json is not JSON: Expecting value"),
    ("train --split latin.json", "latin.json is not JSON: 'utf-8'"),
    ("train --split deep.json", "deep.json is not JSON: it is nested too deeply"),
    ("train --split nan.json", "nan.json is not JSON: NaN is not allowed"),
    ("train --split list.json", "must hold lists train, validation, test; train is missing"),
    ("train --split numbers.json", "train must be a list of names; got 1 in it"),
    ("train --split words.json", "train must be a list of names; got 'A'"),
    ("train --split part.json", "validation is missing"),
    ("train --split unknown.json", "1 of 3 names are not among the .* identities: 'nobody'"),
    ("train --split twice.json", "must list an identity once; got more of 'A'"),
    ("train --split one.json", "each part needs at least two identities"),
    # folders and files
    ("train --dataset folder", "dataset folder needs --data-dir, the folder of images"),
    ("train --dataset folder --data-dir nowhere", "--data-dir must be .* there is no folder"),
    ("train --dataset folder --data-dir flat", "2 files lie in no folder of their own: move each"),
    ("train --dataset folder --data-dir pictures.zip", "--data-dir .* an archive, which has to be"),
    ("train --dataset folder --data-dir one.png", "--data-dir .* is a file: give the folder"),
    (
        "train --dataset folder --data-dir bytes --identities-per-batch 4",
        "bytes that are not text: rename the folder",
    ),
    ("train --dataset vectors", "dataset vectors needs --data-dir, the file of features"),
    ("train --dataset vectors --data-dir nowhere.npz", "there is no file .*nowhere.npz"),
    ("train --dataset vectors --data-dir flat", "file of vectors, .npz, .npy, .*; got .*/flat"),
    (
        "train --dataset vectors --data-dir one.png",
        "file of vectors, .npz, .npy, .*; got .*one.png",
    ),
    ("train --dataset vectors --data-dir empty.npz", "empty.npz is damaged or no .npz file"),
    ("train --dataset vectors --data-dir text.npz", "text.npz is damaged or no .npz file"),
    ("train --dataset vectors --data-dir names.npz", "features is missing, got files, embeddings"),
    ("train --dataset vectors --data-dir flat.npz", r"shape \[rows, numbers\] .*got \(30,\)"),
    ("train --dataset vectors --data-dir short.npz", r"labels .*shape \(30,\); got \(29,\)"),
    ("train --dataset vectors --data-dir objects.npz", "Python objects, which are never unpickled"),
    (
        "train --dataset vectors --data-dir nan.npz --identities-per-batch 2",
        "examples must be finite numbers of float32; example 7 is not",
    ),
    ("train --dataset vectors --data-dir bare.npy", "needs its labels in bare.labels.txt beside"),
    (
        "train --dataset vectors --data-dir objects.npy",
        "cannot read .*objects.npy: .*Python object",
    ),
    ("train --dataset vectors --data-dir few.npy", "a line for each of 30 rows; got 2"),
    ("train --dataset vectors --data-dir text.csv", "text.csv must have a column label"),
    ("train --dataset vectors --data-dir text.parquet", "cannot read .*text.parquet: Parquet"),
    ("train --dataset vectors --data-dir x --image-size 8", "--image-size is for pictures; got it"),
    ("train --dataset vectors --data-dir x --augment flip", "augment is for pictures; got it with"),
    ("train --dataset vectors --data-dir x --encoder nn2", "there is no file .*x"),
    (
        "train --dataset vectors --data-dir good.npz --encoder nn2 --identities-per-batch 2",
        "encoder nn2 takes examples .*--encoder head, linear and mlp take",
    ),
    ("train --dataset vectors --data-dir x --freeze 1", "--freeze is for encoders .*; got head"),
    ("train --dataset good.npz", "the file good.npz: use --dataset vectors --data-dir good.npz"),
    (
        "train --encoder head:hidden=4/2,dropout=0",
        "takes sizes up to 65,536 and as many rates .*dropout=0$",
    ),
    ("datasets describe vectors --data-dir good.npz --out x.png", "--out is for the contact sheet"),
    ("train --dataset list", "dataset list needs --data-dir, the .csv or .tsv file"),
    ("train --dataset list --data-dir nowhere.csv", "there is no file .*nowhere.csv"),
    ("train --dataset list --data-dir one.png", "ending of a list must be one of .csv, .tsv"),
    ("train --dataset list --data-dir text.csv", "name columns path and label, .*; got no table"),
    (
        "train --dataset list --data-dir missing.csv",
        r"1 of 2 files in .*, first .*/1.png \(line 2\)",
    ),
    ("train --dataset flat", "got the folder flat: use --dataset folder --data-dir flat"),
    ("train --dataset lfw", "use tfds:lfw"),
    ("train --data-dir flat", "--data-dir is for dataset folder, list, vectors or tfds"),
    ("train --manual-dir flat", "--manual-dir is for datasets tfds:NAME"),
    ("train --label-key name", "--label-key is for datasets tfds:NAME"),
    ("train --out one.png", "--out must be a folder; one.png is a file"),
    ("train --out flat --resume", "flat is not empty and not a run folder"),
    ("train --out one.png/run", "cannot write the folder one.png/run: Not a directory"),
    ("train --out s3://a/b", "--out must be a path of this machine; got s3://a/b"),
    ("train --compilation-cache gs://a", "--compilation-cache must be a path of this machine"),
    ("compare --out one.png", "cannot write the folder one.png: File exists"),
    ("evaluate nowhere", "no finished run in nowhere: there is no such folder"),
    ("evaluate one.png", "no finished run in one.png"),
    ("evaluate pictures.zip", "no finished run in pictures.zip"),
    ("embed nowhere flat", "no finished run in nowhere"),
    ("embed flat flat --out nowhere/e.npz", "--out must be .* there is no folder nowhere"),
    ("verify nowhere one.png one.png", "no finished run in nowhere"),
    ("features nowhere", "--data-dir must be a folder of images; there is no folder .*nowhere"),
    ("features flat --data-dir flat", "give the folder once"),
    ("features flat --encoder mlp", "2 files lie in no folder of their own"),
    ("features --out flat", "--out must be a file in a folder; got flat: that is a folder"),
    ("features --out nowhere/x.npz", "--out must be .* there is no folder nowhere"),
    ("features --out x.npy", r"--out must end in \.npz; got x.npy"),
    ("features --out old.npz", "old.npz exists: add --overwrite, or choose another --out"),
    ("features --encoder small_cnn", "a trunk, which encoder small_cnn does not have"),
    ("features --encoder resnet", "encoder must be one of "),
    ("features --weights no.safetensors", "--weights .* there is no file"),
    (
        "features --pretrained --weights one.png",
        "--pretrained and --weights cannot be used together",
    ),
    ("features --views 2", "views and --augment need each other, .*; got 2 and 'none'"),
    ("features --augment flip", "views and --augment need each other"),
    ("features --views -1 --augment flip", "views and --augment need each other"),
    ("features --views x", "'--views': Input should be a valid integer"),
    ("features --feature-dtype float", "feature.dtype must be one of float32, float16"),
    ("features --batch-size 0", "batch.size must be at least 1 and at most .*; got 0"),
    ("features --epochs 3", "No such option: --epochs"),
    ("datasets describe glyfs", "Did you mean 'glyphs'"),
    ("datasets describe glyphs --out nowhere/x.png", "--out must be .* there is no folder nowhere"),
    ("datasets describe glyphs --out flat", "--out must be .*got flat: that is a folder"),
    ("datasets describe glyphs --out x.doc", "--out must end in one of .*.png.*; got x.doc"),
    ("datasets --data-dir flat describe glyphs", "give --data-dir after the command"),
    ("schedules plot --out flat", "--out must be a file in a folder; got flat: that is a folder"),
    ("schedules plot --out x.doc", "--out must end in one of"),
    ("schedules plot --out x.pgf", "--out must end in one of .*png"),
    ("schedules plot --out flat/1.png --history flat", "flat/1.png is one of the inputs"),
    ("datasets describe folder --data-dir flat --out flat/1.png", "flat/1.png is one of the inpu"),
    ("embed flat good.npz --out good.npz", "good.npz is one of the inputs, and would be replaced"),
    ("embed flat flat --out flat/e.npz", "--out must be a file outside of the run flat; got flat"),
    ("embed flat old --out /proc/x.npz", "cannot write /proc/x.npz: "),
    ("embed flat old --out ''", "'--out': it must be a path; got an empty text"),
    ("embed flat ~nosuchuser/x", "'folder': it must be a path; there is no home folder of ~nosuch"),
    ("verify ~nosuchuser/run one.png one.png", "'RUN': it must be a path; there is no home folder"),
    ("train --out ~nosuchuser/x", "--out must be a path; there is no home folder of ~nosuchuser"),
    ("train --dataset folder --data-dir ''", "--data-dir must be a path; got an empty text"),
    ("search old one.png --sheet one.png", "one.png is one of the inputs, and would be replaced"),
    ("schedules plot --history nowhere", "no epochs in nowhere/history.jsonl"),
    ("schedules plot --history old", "old/history.jsonl is damaged: Expecting"),
]

SPLITS = {
    "cut": b'{"train": ["A"',
    "empty": b"",
    "latin": b'{"train": ["\xff"]}',
    "deep": b"[" * 100_000,
    "nan": b'{"train": [NaN], "validation": ["B"], "test": ["C"]}',
    "list": b"[1]",
    "numbers": b'{"train": [1], "validation": [2], "test": [3]}',
    "words": b'{"train": "A", "validation": "B", "test": "C"}',
    "part": b'{"train": ["A"]}',
    "unknown": b'{"train": ["A"], "validation": ["nobody"], "test": ["C"]}',
    "twice": b'{"train": ["A"], "validation": ["A"], "test": ["B"]}',
    "one": b'{"train": ["A"], "validation": ["B"], "test": ["C"]}',
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what belongs elsewhere."""
    root = tmp_path_factory.mktemp("place")
    (root / "flat").mkdir()
    (root / "old").mkdir()
    (root / "folder.json").mkdir()
    for name in ("one.png", "flat/1.png", "flat/2.png"):
        Image.new("L", (4, 4)).save(root / name)
    (root / "old.npz").write_bytes(b"")
    (root / "pictures.zip").write_bytes(b"PK\3\4")
    (root / "old" / "history.jsonl").write_text("nonsense\n")
    for name, content in SPLITS.items():
        (root / f"{name}.json").write_bytes(content)
    rows = {"features": np.ones((30, 4), np.float32), "labels": np.arange(30) // 2}
    np.savez(root / "good.npz", **rows)
    np.savez(root / "names.npz", files=np.array(["a"]), embeddings=np.ones((1, 4)))
    np.savez(root / "flat.npz", features=np.ones(30), labels=rows["labels"])
    np.savez(root / "short.npz", features=rows["features"], labels=rows["labels"][1:])
    np.savez(root / "objects.npz", features=rows["features"], labels=np.array([None] * 30))
    spoilt = np.where(np.arange(30)[:, None] == 7, np.nan, rows["features"])
    np.savez(root / "nan.npz", features=spoilt, labels=rows["labels"])
    for name in ("bare", "few"):
        np.save(root / f"{name}.npy", rows["features"])
    np.save(root / "objects.npy", np.array([None] * 30))
    (root / "few.labels.txt").write_text("a\nb\n")
    for name in ("text.npz", "text.csv", "text.parquet"):
        (root / name).write_text("no table\n")
    (root / "empty.npz").touch()
    (root / "missing.csv").write_text("path,label\n1.png,a\none.png,b\n")
    # A name that is no text: a byte that is none.
    for person in [*(f"{i:02}" for i in range(20)), "\udcff"]:
        (root / "bytes" / person).mkdir(parents=True)
        for shot in "12":
            Image.new("L", (4, 4)).save(root / "bytes" / person / f"{shot}.png")
    return root


@pytest.fixture
def nothing_trains(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("it was accepted")

    monkeypatch.setattr(fit, "_train", refuse)


@pytest.mark.usefixtures("nothing_trains")
@pytest.mark.parametrize(("typed", "message"), ROWS, ids=[typed for typed, _ in ROWS])
def test_one_line_and_status_2(typed, message, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(shlex.split(typed))
    printed, said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.count("\n") == 1
    assert said.startswith("margin-jax: ")
    assert re.search(message, said), said
    assert printed == ""
    assert sorted(place.rglob("*")) == before


def test_there_are_rows_for_every_option_of_a_run():
    tried = " ".join(typed for typed, _ in ROWS)
    untried = {field.name for field in dataclasses.fields(mj.TrainConfig)} - {"histogram"}
    untried -= {name for name in untried if f"--{name.replace('_', '-')}" in tried}
    assert untried == set()
    assert len(ROWS) >= 120


LOSS = mj.batch_all_triplet_loss
E, Y = np.zeros((4, 2), np.float32), np.array([0, 0, 1, 1])
IMAGES = np.zeros((4, 9, 9, 1), np.uint8)

PYTHON = {
    "margin of text": (lambda: mj.dams("0.2"), "margin must be a number; got '0.2'"),
    "margin of nothing": (lambda: mj.dams(None), "margin must be a number; got None"),
    "margins": (lambda: mj.constant(np.ones(2)), "margin must be a number; got array"),
    "margin NaN": (lambda: mj.dams(float("nan")), "margin must be finite and at least 0; got nan"),
    "share of text": (lambda: mj.dams(0.2, threshold="9"), "threshold must be a number; got '9'"),
    "half an epoch": (lambda: mj.linear(0.1, 1, 2.5), "epochs must be a whole number; got 2.5"),
    "no epochs": (lambda: mj.linear(0.1, 1, 0), "epochs must be between 1 and 1,000,000; got 0"),
    "clip": (lambda: mj.clip_schedule(mj.dams(0.2), 1, 0), "low must be at most high; got 1 and 0"),
    "hold": (lambda: mj.hold_schedule(mj.dams(0.2), -1), "between 1 and 1,000,000; got -1"),
    "join": (lambda: mj.join_schedules([mj.dams(0.2)], [3]), "one boundary between each two"),
    "labels of text": (lambda: LOSS(E, np.array(list("aabb")), 0.2), "labels must be integers"),
    "labels of floats": (lambda: LOSS(E, Y / 1, 0.2), "labels must be integers; got float64"),
    "huge labels": (lambda: LOSS(E, [2**40, 0, 0, 0], 0.2), "labels must fit int32"),
    "few labels": (lambda: LOSS(E, Y[:3], 0.2), r"labels must have shape \(4,\), .*got \(3,\)"),
    "whole embeddings": (lambda: LOSS(E.astype(int), Y, 0.2), "must be floating point"),
    "one embedding": (lambda: LOSS(E[0], Y, 0.2), r"shape \[rows, dim\], .*got \(2,\)"),
    "a state as margin": (lambda: LOSS(E, Y, mj.dams(0.2).init()), "such as state.margin; got Sch"),
    "text as margin": (lambda: LOSS(E, Y, "0.2"), "such as state.margin; got str"),
    "None as margin": (lambda: LOSS(E, Y, None), "such as state.margin; got NoneType"),
    "two margins": (
        lambda: LOSS(E, Y, jnp.ones(2)),
        r"a scalar, or of shape \(4,\), one for each anchor; got shape \(2,\)",
    ),
    "a table of margins": (lambda: LOSS(E, Y, jnp.ones((4, 4))), r"got shape \(4, 4\)"),
    "margins with NaN": (
        lambda: LOSS(E, Y, np.array([0.2, np.nan, 0, 0])),
        "must be below 1e38 and finite; got .*nan",
    ),
    "distance": (lambda: LOSS(E, Y, 0.2, distance="euclid"), "Did you mean 'euclidean'"),
    "reduction": (lambda: LOSS(E, Y, 0.2, reduction="max"), "reduction must be one of"),
    "mining": (lambda: LOSS(E, Y, 0.2, mining="easy"), "mining must be one of"),
    "where of numbers": (lambda: LOSS(E, Y, 0.2, where=Y), "where must be boolean; got int"),
    "where too short": (lambda: LOSS(E, Y, 0.2, where=[True]), r"shape \(4,\); got \(1,\)"),
    "unlabelled": (lambda: LOSS(E, Y, 0.2, references=E), "references need reference_labels"),
    "config of text": (lambda: mj.fit("glyphs"), "config must be a TrainConfig; got str"),
    "config of nothing": (lambda: mj.fit(None), "config must be a TrainConfig; got NoneType"),
    "a text": (lambda: mj.TrainConfig(epochs="3"), "epochs must be a whole number; got '3'"),
    "a field": (lambda: mj.TrainConfig(epoch=3), "Did you mean 'epochs'"),
    "dataset": (lambda: mj.load_dataset("glyfs"), "Did you mean 'glyphs'"),
    "P": (lambda: mj.pk_batches(Y, 3, 2, seed=0, epoch=0), "needs 3 identities .* got 2 of 2"),
    "K": (lambda: mj.pk_batches(Y, 2, 5, seed=0, epoch=0), "with at least 5 images; got 0 of 2"),
    "augment": (lambda: mj.make_augment("flop"), "augment must be one of .*'flip'"),
    "distances NaN": (
        lambda: mj.verification_report([1, np.nan], [True, False], threshold=1),
        "distances must be finite; 1 of 2 are not",
    ),
    "one kind": (lambda: mj.choose_threshold([1, 2], [True, True]), "same and different pairs"),
    "same of numbers": (lambda: mj.choose_threshold([1, 2], [1, 0]), "same must be boolean"),
    "threshold NaN": (
        lambda: mj.verification_report([1, 2], [True, False], threshold=np.nan),
        "threshold must be a distance; got NaN",
    ),
    "nobody twice": (lambda: mj.retrieval_report(E, np.arange(4)), "two images of one identity"),
    "embeddings NaN": (lambda: mj.retrieval_report(E * np.nan, Y), "embeddings must be finite"),
    "labels of nothing": (
        lambda: mj.Dataset.from_arrays(IMAGES, [0, 0, 1, None]),
        "labels must be numbers or text, .*; got values of type object",
    ),
    "labels NaN": (
        lambda: mj.Dataset.from_arrays(IMAGES, [0, 0, 1, np.nan]),
        "labels must be numbers or text, .*; got NaN",
    ),
    "columns of labels": (
        lambda: mj.Dataset.from_arrays(IMAGES, Y[:, None]),
        r"labels must have shape \(4,\); got \(4, 1\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), PYTHON.values(), ids=PYTHON)
def test_from_python_it_is_an_error_in_words(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


NULLS = (None, float("nan"), -1, 1e308, "x", [], {}, True, 10**30)
WHERE = ("config.json", "data.json", "report.json", "history.jsonl")


@pytest.mark.parametrize("file", WHERE)
def test_whatever_a_file_of_a_finished_run_says_it_is_that_run_or_refused(
    file, tiny_fit, tiny_encoder, tmp_path
):
    """Every value of it in turn becomes another one; what may change in a run may differ."""
    path = tiny_fit(tmp_path, epochs=1).path / file
    whole = path.read_text()
    lines = whole.splitlines() if file == "history.jsonl" else [whole]
    values = json.loads(lines[0])
    for row, name in enumerate(values):
        other = NULLS[row % len(NULLS)]
        text = json.dumps({**values, name: other})
        path.write_text(text + "\n")
        try:
            run = mj.load_run(tmp_path, encoder=tiny_encoder)
        except ValueError:
            continue
        assert file == "config.json", (name, other)
        assert name in CHANGEABLE or values[name] == other
        assert run.report["epochs"] == 1
    path.write_text(whole)
    mj.load_run(tmp_path, encoder=tiny_encoder)
