#!/usr/bin/env python3
"""Compares every request that the tests have sent to their ECS and its logs with botocore's models of the real ones.

validate.py DIR: the files that the tests write where FOREBAY_TEST_ECS_REQUESTS names DIR. Needs botocore.
"""
import json
import pathlib
import re
import sys

import botocore
import botocore.loaders
import botocore.model
import botocore.validate

SERVICES = {
    "ecs": ["DescribeTaskDefinition", "DescribeTasks", "ListTasks", "RegisterTaskDefinition", "RunTask", "StopTask"],
    "logs": ["GetLogEvents"],
}
load = botocore.loaders.Loader().load_service_model
models = {name: botocore.model.ServiceModel(load(name, "service-2"), name) for name in SERVICES}
ACTIONS = {action: models[name].operation_model(action) for name, actions in SERVICES.items() for action in actions}


def problems(action, body):
    shape = ACTIONS[action].input_shape
    report = botocore.validate.ParamValidator().validate(body, shape)
    found = [report.generate_report()] if report.has_errors() else []

    # What botocore leaves to the server: names that nobody knows, values of enumerations, patterns.
    def walk(value, shape, path):
        if shape.type_name == "structure":
            for name, member in value.items():
                if name in shape.members:
                    walk(member, shape.members[name], f"{path}.{name}")
                else:
                    found.append(f"{path}.{name} is not known")
        elif shape.type_name == "list":
            for number, member in enumerate(value):
                walk(member, shape.member, f"{path}[{number}]")
        elif shape.type_name == "map":
            for name, member in value.items():
                walk(member, shape.value, f"{path}.{name}")
        elif shape.type_name == "string":
            if shape.enum and value not in shape.enum:
                found.append(f"{path} is {value}, and none of {shape.enum}")
            pattern = shape.metadata.get("pattern")
            # Python has no \p{…}; where these are used digits and _ are allowed too.
            for name, same in {r"\p{L}": r"\w", r"\p{Z}": r"\s", r"\p{N}": r"\d"}.items():
                pattern = pattern and pattern.replace(name, same)
            if pattern and not re.fullmatch(pattern, value):
                found.append(f"{path} is {value}, which is not like {pattern}")

    walk(body, shape, action)
    return found


def main():
    assert problems("RunTask", {"taskDefinition": "w", "launchType": "FARGAT"}), "a wrong request goes unnoticed"
    assert problems("RunTask", {"taskDefinition": "w", "count": "3"}), "a wrong request goes unnoticed"
    assert problems("RunTask", {"taskDefinition": "w", "nonsense": 1}), "a wrong request goes unnoticed"
    assert problems("RunTask", {"taskDefinition": "w", "tags": [{"value": "*"}]}), "a wrong request goes unnoticed"
    assert problems("GetLogEvents", {"logStreamName": "a:b"}), "a wrong request goes unnoticed"
    counts, wrong = dict.fromkeys(ACTIONS, 0), []
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.ndjson")):
        for line in path.read_text().splitlines():
            request = json.loads(line)
            counts[request["action"]] += 1
            wrong += problems(request["action"], request["body"])
    for problem in sorted(set(wrong)):
        print(problem)
    print(f"botocore {botocore.__version__}:", ", ".join(f"{count} {action}" for action, count in counts.items()))
    print(f"{sum(counts.values()) - len(wrong)} passed, {len(wrong)} failed")
    sys.exit(bool(wrong) or not all(counts.values()))


main()
