r"""`margin-jax train` as it suits a TPU: in bfloat16, with compilations kept for the next start.

On a TPU VM (one host)::

    pip install 'jax[tpu]' . && python experiments/train_tpu.py --out runs/tpu

On a slice, the same command on every host, with a run folder that all of them see (a mounted bucket
or disk; the first process writes to it, all read checkpoints)::

    gcloud compute tpus tpu-vm ssh SLICE --worker=all --command="cd margin-jax && \
      python experiments/train_tpu.py --multihost --dataset folder --data-dir /mnt/pictures \
      --image-size 112 --identities-per-batch 256 --images-per-identity 4 --out /mnt/runs/first \
      --resume"

With ``--resume`` the same command begins the run or goes on with it, so a job that was preempted
needs only to be started again. The options are those of `margin-jax train`, which does the same on
a GPU cluster; given here, they replace the defaults below. A batch (P x K and fillers) must divide
by the number of chips. Not measured on a TPU yet.
"""

import sys

from margin_jax import cli

DEFAULTS = ("--dtype", "bfloat16", "--compilation-cache", "~/.cache/margin-jax")

if __name__ == "__main__":
    cli.main(["train", *DEFAULTS, *sys.argv[1:]])
