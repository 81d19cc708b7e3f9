"""Makes stacks of both templates at ministack, reads back what they are to have made, and puts the properties that it
leaves out (rules of security groups, most of the task definition and of the schedule) to the services' own calls, by
botocore's models with enums and patterns. deploy/check calls it; cfn-lint has been through the templates before."""

import itertools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request

import boto3
from cfnlint.decode import cfn_yaml

HERE = pathlib.Path(__file__).parent
USER = re.search(r"^echo 'forebay:x:(\d+):", (HERE / "../image/rootfs.sh").read_text(), re.M).group(1)
RULES = ("AWS::EC2::SecurityGroupIngress", "AWS::EC2::SecurityGroupEgress")
PSEUDO = {"AWS::Partition": "aws", "AWS::Region": "us-east-1", "AWS::AccountId": "000000000000"}
# Where the templates' name is not the call's with a small first letter.
NAMES = {"EFSVolumeConfiguration": "efsVolumeConfiguration", "FilesystemId": "fileSystemId", "IAM": "iam"}


class Services:
    def __init__(self, endpoint):
        self.endpoint = endpoint

    def __getattr__(self, service):
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        return boto3.client(service, region_name="us-east-1", endpoint_url=self.endpoint, **keys)

    def call(self, service, operation, **parameters):
        """What boto3 lets pass is looked at too."""
        client = getattr(self, service)
        name = client.meta.method_to_api_mapping[operation]
        strict(parameters, client.meta.service_model.operation_model(name).input_shape, name)
        return getattr(client, operation)(**parameters)


def strict(value, shape, where):
    if shape.type_name == "structure":
        for key, part in value.items():
            if key in shape.members:
                strict(part, shape.members[key], f"{where}.{key}")
    elif shape.type_name == "list":
        for part in value:
            strict(part, shape.member, where)
    elif shape.type_name == "string":
        assert not shape.enum or value in shape.enum, f"{where}: {value} is none of {shape.enum}"
        pattern = shape.metadata.get("pattern")
        assert not pattern or re.search(pattern, value), f"{where}: {value} is not like {pattern}"


class Stack:
    def __init__(self, services, name, file, **parameters):
        self.template = cfn_yaml.load(str(HERE / file))
        self.services, self.name = services, name
        made = {k: v for k, v in self.template["Resources"].items() if v["Type"] not in RULES}
        cf = services.cloudformation
        cf.create_stack(
            StackName=name,
            TemplateBody=json.dumps({**self.template, "Resources": made}),
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()],
        )
        for _ in range(300):
            (stack,) = cf.describe_stacks(StackName=name)["Stacks"]
            if not stack["StackStatus"].endswith("IN_PROGRESS"):
                break
            time.sleep(0.1)
        assert stack["StackStatus"] == "CREATE_COMPLETE", stack
        self.outputs = {o["OutputKey"]: o["OutputValue"] for o in stack["Outputs"]}
        found = cf.describe_stack_resources(StackName=name)["StackResources"]
        self.ids = {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in found}
        self.known = {k: str(v["Default"]) for k, v in self.template["Parameters"].items() if "Default" in v}
        self.known |= parameters | self.ids | PSEUDO | {"AWS::StackName": name}
        self.exports = {e["Name"]: e["Value"] for e in cf.list_exports()["Exports"]}

    def holds(self, condition):
        ((function, of),) = self.template["Conditions"][condition].items()
        if function == "Fn::Not":
            ((_, of),) = of[0].items()
            return self.resolve(of[0]) != of[1]
        return self.resolve(of[0]) == of[1]

    def resolve(self, value):
        if isinstance(value, list):
            return [self.resolve(part) for part in value]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((function, of),) = value.items()
            match function:
                case "Ref":
                    return self.known[of]
                case "Fn::Sub":
                    return re.sub(r"\$\{([^}]+)\}", lambda name: self.known[name.group(1)], of)
                case "Fn::ImportValue":
                    return self.exports[self.resolve(of)]
                case "Fn::Split":
                    return self.resolve(of[1]).split(of[0])
                case "Fn::GetAtt":
                    service = {"AWS::IAM::Role": "iam", "AWS::SQS::Queue": "sqs"}[self.template["Resources"][of[0]]["Type"]]
                    kind = "role/" if service == "iam" else ""
                    return f"arn:aws:{service}:{'' if kind else 'us-east-1'}:000000000000:{kind}{of[0]}"
        return {key: self.resolve(part) for key, part in value.items()}

    def properties(self, resource):
        return self.resolve(self.template["Resources"][resource]["Properties"])


def small(value):
    if isinstance(value, list):
        return [small(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {NAMES.get(key, key[0].lower() + key[1:]): small(part) for key, part in value.items()}


def equal(what, found, expected):
    assert found == expected, f"{what}: {found}, expected {expected}"


def check_base(services, stack, subnets, meet, has_output):
    targets = services.efs.describe_mount_targets(FileSystemId=stack.outputs["FileSystem"])["MountTargets"]
    equal("subnets with a mount target", sorted(t["SubnetId"] for t in targets), sorted(subnets))
    (point,) = services.efs.describe_access_points(FileSystemId=stack.outputs["FileSystem"])["AccessPoints"]
    equal("the access point's user", point["PosixUser"], {"Uid": int(USER), "Gid": int(USER)})
    role = stack.ids["CoordinatorRole"]
    policies = set(services.iam.list_role_policies(RoleName=role)["PolicyNames"])
    equal("the coordinator's policies", policies, {"source", "workers"} | ({"output"} if has_output else set()))

    links = set()
    for name, resource in stack.template["Resources"].items():
        if resource["Type"] not in RULES or not ("Condition" not in resource or stack.holds(resource["Condition"])):
            continue
        rule = stack.properties(name)
        ingress = resource["Type"] == RULES[0]
        other = rule["SourceSecurityGroupId" if ingress else "DestinationSecurityGroupId"]
        pair = {"GroupId": other, "Description": rule["Description"]}
        ports = {"IpProtocol": rule["IpProtocol"], "FromPort": rule["FromPort"], "ToPort": rule["ToPort"]}
        operation = "authorize_security_group_ingress" if ingress else "authorize_security_group_egress"
        services.call("ec2", operation, GroupId=rule["GroupId"], IpPermissions=[{**ports, "UserIdGroupPairs": [pair]}])
        if ingress:
            links.add((other, rule["GroupId"], rule["ToPort"]))
    volume, workers, coordinator = (stack.ids[f"{name}Group"] for name in ("FileSystem", "Worker", "Coordinator"))
    expected = {(workers, volume, 2049), (coordinator, volume, 2049), (workers, coordinator, 60999)}
    if meet:
        expected |= {(workers, workers, 60999), (coordinator, workers, 60999)}
    equal("who reaches whom", links, expected)

    assert len(stack.outputs["JobTable"].encode()) <= 1024, "CloudFormation cuts outputs after 1024 bytes"
    tables = tomllib.loads(stack.outputs["JobTable"])
    equal("[coordinator] task_role", tables["coordinator"]["task_role"], stack.outputs["CoordinatorRole"])
    equal("groups of [coordinator]", tables["coordinator"]["security_groups"], [coordinator])
    table = tables["ecs"]
    equal("subnets of [ecs]", table["subnets"], subnets)
    equal("groups of [ecs]", table["security_groups"], [workers])
    equal("[ecs] efs", table["efs"]["access_point"], point["AccessPointId"])


def check_schedule(services, stack, base):
    task = small(stack.properties("TaskDefinition"))
    made = services.call("ecs", "register_task_definition", **task)["taskDefinition"]
    volume = made["volumes"][0]["efsVolumeConfiguration"]
    equal("the coordinator's volume", volume["authorizationConfig"], {"accessPointId": base.outputs["AccessPoint"], "iam": "ENABLED"})
    (container,) = made["containerDefinitions"]
    equal("the coordinator's user", container["user"], f"{USER}:{USER}")
    named = re.findall(r"^ENV .*\n(?:    .*\n)*|^VOLUME .*", (HERE / "../image/Dockerfile").read_text(), re.M)
    for mount in container["mountPoints"]:
        assert any(mount["containerPath"] in line for line in named), f"{mount} is not in the image"

    schedule = stack.properties("Schedule")
    network = schedule["Target"]["EcsParameters"]["NetworkConfiguration"]
    network["awsvpcConfiguration"] = network.pop("AwsvpcConfiguration")
    equal("the coordinator's subnets", network["awsvpcConfiguration"]["Subnets"], base.outputs["Subnets"].split(","))
    services.call("scheduler", "create_schedule", Name=f"{stack.name}-called", **schedule)
    equal("the schedule's state", services.scheduler.get_schedule(Name=stack.outputs["Schedule"])["State"], "ENABLED")


def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as work:
        environment = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "IOT_MTLS_ENABLED": "0", "TMPDIR": work}
        program = pathlib.Path(sys.executable).with_name("ministack")
        with open(f"{work}/log", "wb") as log:
            server = subprocess.Popen([program], env=os.environ | environment, stdout=log, stderr=log)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{endpoint}/_ministack/health").close()
                    break
                except OSError:
                    assert server.poll() is None, pathlib.Path(f"{work}/log").read_text()
                    time.sleep(0.1)
            check(Services(endpoint))
        finally:
            server.terminate()
            server.wait()


def check(services):
    vpc = services.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    zones = [f"us-east-1{zone}" for zone in "abc"]
    make = lambda n, zone: services.ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{n}.0/24", AvailabilityZone=zone)
    subnets = [make(n, zone)["Subnet"]["SubnetId"] for n, zone in enumerate(zones)]
    for count, (has_output, meet) in zip(itertools.cycle((1, 3, 2)), itertools.product((False, True), repeat=2)):
        name = f"forebay-{count}{'-output' if has_output else ''}{'-meet' if meet else ''}"
        given = {f"Subnet{letter}": subnet for letter, subnet in zip("ABC", subnets[:count])}
        given |= {"OutputBucket": "acme-reports"} if has_output else {}
        given |= {"WorkersMeet": "true"} if meet else {}
        base = Stack(services, name, "forebay.yaml", Vpc=vpc, SourceBucket="acme-flights", **given)
        check_base(services, base, subnets[:count], meet, has_output)
        image = base.outputs["Repository"] + ":1"
        job = Stack(services, f"{name}-weekly", "schedule.yaml", Forebay=name, Image=image, TimeZone="Europe/Berlin")
        check_schedule(services, job, base)
        print(f"{name} and a schedule on it: as they should be")


main()
