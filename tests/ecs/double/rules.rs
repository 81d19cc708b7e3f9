//! What ECS refuses: its documented limits, and the rules between fields.

use std::time::Instant;

use serde_json::{Value, json};

/// Why a request is refused: the error's type and message.
pub type Refusal = (&'static str, String);

const INVALID: &str = "InvalidParameterException";
const CLIENT: &str = "ClientException";

/// Tokens: so many at most, so many more each second.
pub struct Bucket<const BURST: u32, const REFILL: u32> {
    tokens: f64,
    at: Instant,
}

impl<const BURST: u32, const REFILL: u32> Default for Bucket<BURST, REFILL> {
    fn default() -> Self {
        Self { tokens: f64::from(BURST), at: Instant::now() }
    }
}

impl<const BURST: u32, const REFILL: u32> Bucket<BURST, REFILL> {
    pub fn take(&mut self, count: u32) -> Result<(), Refusal> {
        let now = Instant::now();
        let refilled = self.tokens + (now - self.at).as_secs_f64() * f64::from(REFILL);
        (self.tokens, self.at) = (refilled.min(f64::from(BURST)), now);
        if self.tokens < f64::from(count) {
            return Err(("ThrottlingException", "Rate exceeded".to_owned()));
        }
        self.tokens -= f64::from(count);
        Ok(())
    }
}

fn invalid<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err((INVALID, message.into()))
}

fn client<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err((CLIENT, message.into()))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

pub fn run_task(body: &Value, definition: &Value) -> Result<(), Refusal> {
    let count = body["count"].as_u64().unwrap_or(1);
    if !(1..=10).contains(&count) {
        return invalid("Tasks count should be between 1 and 10");
    }
    let token = body["clientToken"].as_str().unwrap_or_default();
    if token.len() > 64 || !token.bytes().all(|byte| (33..=126).contains(&byte)) {
        return invalid("clientToken: up to 64 characters in the range of 33-126");
    }
    let started_by = body["startedBy"].as_str().unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_".contains(&byte);
    if started_by.len() > 128 || !started_by.bytes().all(plain) {
        return invalid("startedBy: up to 128 letters, numbers, hyphens, forward slashes and underscores");
    }
    tags(body)?;
    if body["overrides"].to_string().chars().count() > 8192 {
        return invalid("Container Overrides length must be at most 8192");
    }
    let names = list(&definition["containerDefinitions"], "").iter();
    let names: Vec<_> = names.chain(list(definition, "containerDefinitions")).map(|c| &c["name"]).collect();
    if let Some(other) = list(&body["overrides"], "containerOverrides").iter().find(|o| !names.contains(&&o["name"])) {
        return invalid(format!(
            "Override for container named {} is not a container in the TaskDefinition.",
            other["name"]
        ));
    }
    let providers: Vec<_> =
        list(body, "capacityProviderStrategy").iter().map(|p| p["capacityProvider"].as_str()).collect();
    if !body["launchType"].is_null() && !providers.is_empty() {
        return invalid("Both launch type and capacity provider strategy should not be provided");
    }
    let fargate =
        body["launchType"] == "FARGATE" || providers.iter().any(|p| matches!(p, Some("FARGATE" | "FARGATE_SPOT")));
    if fargate && !list(definition, "requiresCompatibilities").contains(&json!("FARGATE")) {
        return invalid("Task definition does not support launch_type FARGATE.");
    }
    if !fargate && !body["platformVersion"].is_null() {
        return invalid("The platform version must be null when specifying an EC2 launch type.");
    }
    let vpc = &body["networkConfiguration"]["awsvpcConfiguration"];
    match (definition["networkMode"] == "awsvpc", vpc.is_null()) {
        (true, true) => {
            return invalid("Network Configuration must be provided when networkMode 'awsvpc' is specified.");
        }
        (false, false) => {
            return invalid("Network Configuration is not valid for the given networkMode of this task definition.");
        }
        _ => {}
    }
    if !vpc.is_null() && !(1..=16).contains(&list(vpc, "subnets").len()) {
        return invalid("subnets can have from 1 to 16 items.");
    }
    if list(vpc, "securityGroups").len() > 5 {
        return invalid("securityGroups can have at most 5 items.");
    }
    if !fargate && !vpc["assignPublicIp"].is_null() {
        return invalid("Assign public IP is not supported for this launch type");
    }
    Ok(())
}

fn tags(body: &Value) -> Result<(), Refusal> {
    let tags = list(body, "tags");
    if tags.len() > 50 {
        return invalid("Tags can have at most 50 items.");
    }
    for tag in tags {
        let (key, value) = (tag["key"].as_str().unwrap_or_default(), tag["value"].as_str().unwrap_or_default());
        let plain = |text: &str| text.chars().all(|char| char.is_alphanumeric() || " +-=._:/@".contains(char));
        if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 || !plain(key) || !plain(value) {
            return invalid(format!("the tag {key} is not valid"));
        }
        if key.to_ascii_lowercase().starts_with("aws:") {
            return invalid("aws: prefixed tag key names are not allowed for external use.");
        }
    }
    Ok(())
}

pub fn describe_tasks(body: &Value) -> Result<(), Refusal> {
    match list(body, "tasks").len() {
        0 => invalid("Tasks cannot be empty."),
        1..=100 => Ok(()),
        _ => invalid("Tasks cannot have more than 100 elements"),
    }
}

pub fn list_tasks(body: &Value) -> Result<(), Refusal> {
    let filters = ["containerInstance", "family", "serviceName", "desiredStatus", "launchType"];
    if !body["startedBy"].is_null() && filters.iter().any(|filter| !body[*filter].is_null()) {
        return invalid("startedBy cannot be combined with other filters.");
    }
    match body["maxResults"].as_u64() {
        Some(0 | 101..) => invalid("maxResults is from 1 to 100"),
        _ => Ok(()),
    }
}

pub fn get_log_events(body: &Value) -> Result<(), Refusal> {
    if body["logGroupName"].is_null() || body["logStreamName"].is_null() {
        return invalid("a log group and a log stream are required");
    }
    if !body["nextToken"].is_null() && body["startFromHead"] != true {
        return invalid("a forward token needs startFromHead");
    }
    Ok(())
}

/// Sizes of Fargate: CPU, and from where to where memory is, in which steps, in MiB.
const SIZES: [(u64, u64, u64, u64); 8] = [
    (256, 512, 512, 512),
    (256, 1024, 2048, 1024),
    (512, 1024, 4096, 1024),
    (1024, 2048, 8192, 1024),
    (2048, 4096, 16_384, 1024),
    (4096, 8192, 30_720, 1024),
    (8192, 16_384, 61_440, 4096),
    (16_384, 32_768, 122_880, 8192),
];

/// Of a task definition.
const LARGEST: usize = 65_536;

pub fn register(body: &Value) -> Result<(), Refusal> {
    let length = body.to_string().len();
    if length > LARGEST {
        return client(format!("Actual length: '{length}'. Max allowed length is '{LARGEST}' bytes."));
    }
    let family = body["family"].as_str().unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if family.is_empty() || family.len() > 255 || !family.bytes().all(plain) {
        return client("Family contains invalid characters.");
    }
    let fargate = list(body, "requiresCompatibilities").contains(&json!("FARGATE"));
    let number = |key: &str| body[key].as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let (cpu, memory) = (number("cpu"), number("memory"));
    let fits = |&(units, first, last, step): &(u64, u64, u64, u64)| {
        units == cpu && (first..=last).contains(&memory) && (memory - first).is_multiple_of(step)
    };
    if fargate && !SIZES.iter().any(fits) {
        return client("No Fargate configuration exists for given values.");
    }
    if fargate && body["networkMode"] != "awsvpc" {
        return client("Fargate only supports network mode 'awsvpc'.");
    }
    let volumes = list(body, "volumes");
    volumes.iter().try_for_each(|volume| self::volume(volume, fargate, body))?;
    let containers = list(body, "containerDefinitions");
    if containers.is_empty() {
        return client("Container definitions should not be empty.");
    }
    for container in containers {
        if container["image"].as_str().is_none_or(str::is_empty) {
            return client("Container.image should not be null or empty.");
        }
        if fargate && container["stopTimeout"].as_u64().unwrap_or(30) > 120 {
            return client("Container.stopTimeout is at most 120 on Fargate.");
        }
        for mount in list(container, "mountPoints") {
            if !volumes.iter().any(|volume| volume["name"] == mount["sourceVolume"]) {
                return client(format!("Unknown volume '{}'.", mount["sourceVolume"]));
            }
        }
        let log = &container["logConfiguration"];
        if log["logDriver"] == "awslogs" {
            if !matches!(log["options"]["mode"].as_str(), None | Some("blocking" | "non-blocking")) {
                return client("Log driver mode is blocking or non-blocking");
            }
            for option in ["awslogs-group", "awslogs-region", "awslogs-stream-prefix"] {
                if fargate && log["options"][option].is_null() {
                    return client(format!("Log driver awslogs requires options: {option}"));
                }
            }
            if fargate && body["executionRoleArn"].is_null() {
                return client(
                    "Fargate requires task definition to have execution role ARN to support log driver awslogs.",
                );
            }
        }
    }
    Ok(())
}

fn volume(volume: &Value, fargate: bool, body: &Value) -> Result<(), Refusal> {
    if fargate && !volume["host"]["sourcePath"].is_null() {
        return client("host.sourcePath is not supported on Fargate.");
    }
    let efs = &volume["efsVolumeConfiguration"];
    if !efs.is_null() {
        let may = &efs["authorizationConfig"];
        let (encrypted, root) = (efs["transitEncryption"] == "ENABLED", efs["rootDirectory"].as_str().unwrap_or("/"));
        if !encrypted && (may["iam"] == "ENABLED" || !may["accessPointId"].is_null()) {
            return client("Transit encryption must be enabled when an access point or IAM authorization is used.");
        }
        if !may["accessPointId"].is_null() && !matches!(root, "" | "/") {
            return client("Root directory must be omitted or set to / when an access point is specified.");
        }
    }
    let files = &volume["s3filesVolumeConfiguration"];
    if !files.is_null() {
        if body["taskRoleArn"].is_null() {
            return client("S3 Files volumes need a task role.");
        }
        if !files["accessPointArn"].is_null() && !matches!(files["rootDirectory"].as_str().unwrap_or("/"), "" | "/") {
            return client("Root directory must be omitted or set to / when an access point is specified.");
        }
    }
    Ok(())
}
