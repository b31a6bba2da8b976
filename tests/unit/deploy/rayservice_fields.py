"""What KubeRay asks of the fields that our manifests use, written down by hand.

Source: the CustomResourceDefinition of RayService, version ray.io/v1, in KubeRay's `ray.io_rayservices.yaml`. It has no
other fields than those that we use, so that a misspelt key is an error here as it is there. Pods are Kubernetes' own.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "integer"}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}
ANY_OBJECT: Schema = {"type": "object"}


def fields(*required: str, **properties: Schema) -> Schema:
    """Return the schema of an object with these keys and no others."""
    return {"type": "object", "required": [*required], "properties": properties, "additionalProperties": False}


def items(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


CONTAINER = fields(
    "name",
    name=STRING,
    image=STRING,
    env=items(ANY_OBJECT),
    lifecycle=ANY_OBJECT,
    ports=items(fields("containerPort", name=STRING, containerPort=NUMBER)),
    readinessProbe=ANY_OBJECT,
    resources=fields(requests=ANY_OBJECT, limits=ANY_OBJECT),
    securityContext=ANY_OBJECT,
    volumeMounts=items(fields("name", "mountPath", name=STRING, mountPath=STRING)),
)
POD = fields(
    metadata=ANY_OBJECT,
    spec=fields(
        "containers",
        automountServiceAccountToken=BOOLEAN,
        containers=items(CONTAINER),
        securityContext=ANY_OBJECT,
        nodeSelector=STRINGS,
        terminationGracePeriodSeconds=NUMBER,
        tolerations=items(ANY_OBJECT),
        volumes=items({"type": "object", "required": ["name"]}),
    ),
)
CREDENTIAL = fields(value=STRING, valueFrom=ANY_OBJECT)
CLUSTER = fields(
    "headGroupSpec",
    rayVersion=STRING,
    authOptions=fields(mode=STRING | {"enum": ["disabled", "token"]}),
    gcsFaultToleranceOptions=fields(
        redisAddress=STRING,
        redisPassword=CREDENTIAL,
        redisUsername=CREDENTIAL,
        externalStorageNamespace=STRING,
    ),
    headGroupSpec=fields("template", rayStartParams=STRINGS, template=POD),
    workerGroupSpecs=items(
        fields(
            "groupName",
            "maxReplicas",
            "minReplicas",
            "template",
            groupName=STRING,
            replicas=NUMBER,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            rayStartParams=STRINGS,
            template=POD,
        )
    ),
)
RAY_SERVICE = fields(
    apiVersion=STRING | {"const": "ray.io/v1"},
    kind=STRING | {"const": "RayService"},
    metadata=ANY_OBJECT,
    spec=fields(
        "rayClusterConfig",
        excludeHeadPodFromServeSvc=BOOLEAN,
        rayClusterConfig=CLUSTER,
        serveConfigV2=STRING,
        serveService=ANY_OBJECT,
        upgradeStrategy=fields(type=STRING),
    ),
)
