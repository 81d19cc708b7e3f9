"""Runs so many tasks that do nothing by one of the peers, with two slots: peers.py TOOL noop|true COUNT"""

import subprocess
import sys


def nothing(_=None):
    pass


def true(_=None):
    subprocess.run(["true"], check=True)


def hyperqueue(work, count: int) -> None:
    from hyperqueue import Job, LocalCluster
    from hyperqueue.cluster import WorkerConfig

    if work is not true:
        sys.exit("its wheel runs programs only")
    with LocalCluster(worker_config=WorkerConfig(cores=2)) as cluster:
        job, client = Job(), cluster.client()
        for _ in range(count):
            job.program(["true"])
        client.wait_for_jobs([client.submit(job)])


def dask(work, count: int) -> None:
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        client.gather(client.map(work, range(count), pure=False))


def ray(work, count: int) -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    task = ray.remote(num_cpus=1)(work)
    ray.get([task.remote(n) for n in range(count)])
    ray.shutdown()


if __name__ == "__main__":
    tool, work, count = sys.argv[1:]
    {"hyperqueue": hyperqueue, "dask": dask, "ray": ray}[tool]({"noop": nothing, "true": true}[work], int(count))
