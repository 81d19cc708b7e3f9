#!/usr/bin/env python3
"""ministack's server, and what ECS does for a container that it leaves out: the image, volumes, the root, an address.

Each file system of EFS is a directory of EFS_ROOT. Tasks are in Docker's network TASK_NETWORK, on which TASK_GATEWAY is
this host. What is still otherwise than on AWS: no client token and no count is looked at, StopTask says STOPPED before the
container has ended, which has 5 s to do so whatever its stopTimeout, and nothing is ever throttled or out of capacity.
"""
import os
import sys

import docker.errors
from docker.types import Mount
from ministack.app import main
from ministack.services import ecs, efs

NETWORK, GATEWAY = os.environ["TASK_NETWORK"], os.environ["TASK_GATEWAY"]


def directory(volume):
    """Where a file system is, from the root that its access point or the volume itself names."""
    path, point = volume.get("rootDirectory", "/"), volume.get("authorizationConfig", {}).get("accessPointId")
    if point:
        found = efs._access_points[point]
        assert found["FileSystemId"] == volume["fileSystemId"], f"{point} is of another file system"
        assert path == "/", f"{point} has a root of its own"
        path = found["RootDirectory"]["Path"]
    return os.path.join(os.environ["EFS_ROOT"], volume["fileSystemId"] + path).rstrip("/")


def mounts(definition, container, image):
    volumes = {volume["name"]: volume for volume in definition.get("volumes", [])}
    for point in container.get("mountPoints", []):
        volume, at = volumes[point["sourceVolume"]], point["containerPath"]
        if "efsVolumeConfiguration" in volume:
            yield Mount(at, directory(volume["efsVolumeConfiguration"]), type="bind", read_only=point.get("readOnly", False))
        elif not volume.get("host"):
            # Fargate gives it the owner and the mode of what the image has there if the image calls that a volume.
            declared = at in (image.attrs["Config"].get("Volumes") or {})
            yield Mount(at, None, type="volume", no_copy=not declared)


build_run_kwargs, run_docker_container, register_metadata = (
    ecs._build_run_kwargs, ecs._run_docker_container, ecs._register_metadata)


def build(container, definition, env, ports, _network, host_mode, task, arn, _address, cluster):
    made = build_run_kwargs(container, definition, env, ports, NETWORK, host_mode, task, arn, GATEWAY, cluster)
    made["read_only"] = container.get("readonlyRootFilesystem", False)
    made["init"] = container.get("linuxParameters", {}).get("initProcessEnabled", False)
    made["mem_limit"] = f"{definition['memory']}m"
    made["definition"] = definition
    return made


def run(client, container, kwargs, **how):
    name = container["image"]
    try:
        image = client.images.get(name)
    except docker.errors.ImageNotFound:
        try:
            image = client.images.pull(name)
        except docker.errors.APIError as error:
            raise ecs._ImagePullError(f"pull image manifest has been retried 1 time(s): {error.explanation}") from error
    kwargs["mounts"] = list(mounts(kwargs.pop("definition"), container, image))
    return run_docker_container(client, container, kwargs, **how)


ecs._build_run_kwargs, ecs._run_docker_container = build, run
ecs._register_metadata = lambda *of: register_metadata(*of[:-1], GATEWAY)
sys.argv = ["ministack"]
main()
