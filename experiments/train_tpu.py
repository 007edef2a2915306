"""`margin-jax train` on a TPU: one process a host, the batch shared by all chips of the slice.

The options, the run folder and the code are those of `margin-jax train`; this script adds the start
of a multi-host job. On a TPU VM (one host)::

    pip install 'jax[tpu]' . && python experiments/train_tpu.py --out runs/tpu

On a slice, the same command on every host, with a run folder that all of them see (a mounted bucket
or disk, for the first process writes the report and all take part in checkpoints)::

    gcloud compute tpus tpu-vm ssh SLICE --worker=all --command="cd margin-jax &&
      python experiments/train_tpu.py --multihost --dataset folder --data-dir /mnt/pictures
      --image-size 112 --identities-per-batch 256 --images-per-identity 4 --out /mnt/runs/first"

On a GPU cluster or to try it on one machine, name the coordinator::

    python experiments/train_tpu.py --coordinator localhost:1234 --processes 2 --process 0 ... &
    python experiments/train_tpu.py --coordinator localhost:1234 --processes 2 --process 1 ...

A batch (P x K and fillers) must divide by the number of chips. Not measured on a TPU yet:
tests/test_sharding.py runs two processes on CPUs, and checks that they train as one does.
"""

import argparse
import sys

import jax

from margin_jax import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--multihost", action="store_true", help="JAX finds the other hosts")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, where JAX can not")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    job, options = parser.parse_known_args()
    if job.multihost or job.coordinator is not None:
        jax.distributed.initialize(job.coordinator, job.processes, job.process)
    cli.main(["train", *options])


if __name__ == "__main__":
    sys.exit(main())
