#!/usr/bin/env python3
"""What the scenes need of the cloud beside forebay: `create` it, and say which `tasks` there are."""
import pathlib
import sys

import botocore.session

session = botocore.session.get_session()
client = session.create_client


def create():
    client("ecs").create_cluster(clusterName="forebay")
    client("logs").create_log_group(logGroupName="/forebay")
    efs = client("efs")
    system = efs.create_file_system(CreationToken="forebay")["FileSystemId"]
    user = {"Uid": 10001, "Gid": 10001}
    root = {"Path": "/forebay", "CreationInfo": {"OwnerUid": 10001, "OwnerGid": 10001, "Permissions": "0755"}}
    point = efs.create_access_point(ClientToken="forebay", FileSystemId=system, PosixUser=user, RootDirectory=root)
    s3 = client("s3")
    s3.create_bucket(Bucket="acme-flights")
    data = pathlib.Path(__file__).parents[2] / "examples/nycflights13"
    for path in data.rglob("*.*"):
        s3.put_object(Bucket="acme-flights", Key=f"2013/{path.relative_to(data)}", Body=path.read_bytes())
    s3.create_bucket(Bucket="acme-words")
    for number in range(12):
        words = "".join(f"all some{number % 4} word{number * line % 97}\n" for line in range(2000))
        s3.put_object(Bucket="acme-words", Key=f"{number:02}.txt", Body=words.encode())
    print(system, point["AccessPointId"], root["Path"])


def tasks():
    """A line for each: its run, its id, what it does, its container's exit code, why it has stopped."""
    ecs = client("ecs")
    arns = [arn for status in ["RUNNING", "STOPPED"]
            for page in ecs.get_paginator("list_tasks").paginate(cluster="forebay", desiredStatus=status)
            for arn in page["taskArns"]]
    for start in range(0, len(arns), 100):
        for task in ecs.describe_tasks(cluster="forebay", tasks=arns[start:start + 100], include=["TAGS"])["tasks"]:
            tags = {tag["key"]: tag["value"] for tag in task["tags"]}
            ident = task["taskArn"].rsplit("/", 1)[-1]
            exit_code = task["containers"][0].get("exitCode")
            print(tags["forebay:run"], ident, task["lastStatus"], exit_code, task["stopCode"], task["stoppedReason"])


{"create": create, "tasks": tasks}[sys.argv[1]]()
