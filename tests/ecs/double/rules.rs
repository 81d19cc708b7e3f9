//! What ECS refuses: the limits that its reference names, and its rules between fields. It is told as ECS tells it, as far
//! as people have reported that; where nobody has, by the words of the reference.

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

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

pub fn run_task(body: &Value, definition: &Value) -> Result<(), Refusal> {
    let count = body["count"].as_u64().unwrap_or(1);
    if !(1..=10).contains(&count) {
        return invalid("count: up to 10 tasks for each call");
    }
    let token = text(body, "clientToken");
    if token.len() > 64 || !token.bytes().all(|byte| (33..=126).contains(&byte)) {
        return invalid("clientToken: up to 64 characters in the range of 33-126");
    }
    let started_by = text(body, "startedBy");
    if started_by.len() > 128 {
        return invalid("startedBy longer than 128.");
    }
    if !started_by.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/_".contains(&byte)) {
        return invalid("startedBy: letters, numbers, hyphens, forward slashes and underscores");
    }
    tags(body)?;
    if body["overrides"].to_string().chars().count() > 8192 {
        return invalid("Container Overrides length must be at most 8192");
    }
    let names: Vec<_> = list(definition, "containerDefinitions").iter().map(|it| text(it, "name")).collect();
    let mut overridden = list(&body["overrides"], "containerOverrides").iter().map(|it| text(it, "name"));
    if let Some(other) = overridden.find(|name| !names.contains(name)) {
        return invalid(format!("Override for container named {other} is not a container in the TaskDefinition."));
    }
    let providers: Vec<_> =
        list(body, "capacityProviderStrategy").iter().map(|it| text(it, "capacityProvider")).collect();
    if providers.len() > 20 {
        return invalid("capacityProviderStrategy: a maximum of 20 capacity providers");
    }
    if !body["launchType"].is_null() && !providers.is_empty() {
        return invalid(
            "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try again.",
        );
    }
    let fargate = body["launchType"] == "FARGATE" || providers.iter().any(|it| it.starts_with("FARGATE"));
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
    match list(vpc, "subnets").len() {
        0 if !vpc.is_null() => return invalid("subnets can not be empty."),
        17.. => return invalid("subnets can have at most 16 items."),
        _ => {}
    }
    if list(vpc, "securityGroups").len() > 5 {
        return invalid("securityGroups can have at most 5 items.");
    }
    if !fargate && vpc["assignPublicIp"] == "ENABLED" {
        return invalid("Assign public IP is not supported for this launch type");
    }
    Ok(())
}

fn tags(body: &Value) -> Result<(), Refusal> {
    let tags = list(body, "tags");
    if tags.len() > 50 {
        return invalid("Tags can have at most 50 items.");
    }
    for (at, tag) in tags.iter().enumerate() {
        let (key, value) = (text(tag, "key"), text(tag, "value"));
        let plain = |text: &str| text.chars().all(|char| char.is_alphanumeric() || " +-=._:/@".contains(char));
        if !plain(key) || !plain(value) {
            return invalid("Some tags contain invalid characters.");
        }
        if !(1..=128).contains(&key.chars().count()) || value.chars().count() > 256 {
            return invalid(format!("tags: a key of up to 128 characters, a value of up to 256: {key}"));
        }
        if [key, value].iter().any(|text| text.to_ascii_lowercase().starts_with("aws:")) {
            return invalid("aws: prefixed tag key names are not allowed for external use.");
        }
        if tags[..at].iter().any(|other| text(other, "key") == key) {
            return invalid(format!("tags: each key must be unique: {key}"));
        }
    }
    Ok(())
}

pub fn describe_tasks(body: &Value) -> Result<(), Refusal> {
    match list(body, "tasks").len() {
        0 => invalid("Tasks cannot be empty."),
        1..=100 => Ok(()),
        _ => invalid("taskIds can have at most 100 items."),
    }
}

pub fn list_tasks(body: &Value) -> Result<(), Refusal> {
    let filters = ["containerInstance", "daemonName", "desiredStatus", "family", "launchType", "serviceName"];
    if !body["startedBy"].is_null() && filters.iter().any(|filter| !body[*filter].is_null()) {
        return invalid("cannot specify startedBy with other arguments");
    }
    match body["maxResults"].as_u64() {
        Some(0 | 101..) => invalid("maxResults: between 1 and 100"),
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
    let family = text(body, "family");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if family.is_empty() || family.len() > 255 || !family.bytes().all(plain) {
        return client("Family contains invalid characters.");
    }
    let fargate = list(body, "requiresCompatibilities").contains(&json!("FARGATE"));
    if let Some(missing) = ["cpu", "memory"].into_iter().find(|key| fargate && body[*key].is_null()) {
        return client(format!("Fargate requires that '{missing}' be defined at the task level."));
    }
    let number = |key: &str| text(body, key).parse::<u64>().unwrap_or(0);
    let (cpu, memory) = (number("cpu"), number("memory"));
    let fits = |&(units, first, last, step): &(u64, u64, u64, u64)| {
        units == cpu && (first..=last).contains(&memory) && (memory - first).is_multiple_of(step)
    };
    if fargate && !SIZES.iter().any(fits) {
        return client(format!(
            "No Fargate configuration exists for given values: {cpu} CPU, {memory} memory. \
             See the Amazon ECS documentation for the valid values."
        ));
    }
    if fargate && body["networkMode"] != "awsvpc" {
        return client("Fargate only supports network mode ‘awsvpc’.");
    }
    let volumes = list(body, "volumes");
    volumes.iter().try_for_each(|volume| self::volume(volume, fargate, body))?;
    let containers = list(body, "containerDefinitions");
    if containers.is_empty() {
        return client("Container list cannot be empty.");
    }
    containers.iter().try_for_each(|container| self::container(container, fargate, body))
}

fn container(container: &Value, fargate: bool, body: &Value) -> Result<(), Refusal> {
    if let Some(missing) = ["name", "image"].into_iter().find(|key| text(container, key).is_empty()) {
        return client(format!("Container.{missing} should not be null or empty."));
    }
    if ["memory", "memoryReservation"].iter().all(|key| container[*key].is_null()) && body["memory"].is_null() {
        let name = text(container, "name");
        return client(format!(
            "Invalid setting for container '{name}'. At least one of 'memory' or 'memoryReservation' must be specified."
        ));
    }
    if fargate && container["stopTimeout"].as_u64().unwrap_or(30) > 120 {
        return client("stopTimeout: the maximum is 120 seconds on Fargate");
    }
    let mut mounted = list(container, "mountPoints").iter().map(|mount| text(mount, "sourceVolume"));
    if let Some(other) = mounted.find(|name| !list(body, "volumes").iter().any(|volume| volume["name"] == **name)) {
        return client(format!("Unknown volume '{other}'."));
    }
    let log = &container["logConfiguration"];
    if log["logDriver"] == "awslogs" {
        let options = &log["options"];
        if !matches!(options["mode"].as_str(), None | Some("blocking" | "non-blocking")) {
            return client("mode: blocking or non-blocking");
        }
        let required = ["awslogs-region", "awslogs-group", "awslogs-stream-prefix"];
        let required = if fargate { &required[..] } else { &required[..2] };
        let missing: Vec<_> = required.iter().copied().filter(|option| options[*option].is_null()).collect();
        if !missing.is_empty() {
            return client(format!("Log driver awslogs requires options: {}", missing.join(", ")));
        }
        if fargate && body["executionRoleArn"].is_null() {
            return client(
                "Fargate requires task definition to have execution role ARN to support log driver awslogs.",
            );
        }
    }
    Ok(())
}

fn volume(volume: &Value, fargate: bool, body: &Value) -> Result<(), Refusal> {
    if fargate && !volume["host"]["sourcePath"].is_null() {
        return client("Fargate compatible task definitions do not support sourcePath");
    }
    let kinds = ["dockerVolumeConfiguration", "efsVolumeConfiguration", "s3filesVolumeConfiguration"];
    let kinds = kinds.iter().filter(|kind| !volume[**kind].is_null()).count();
    if kinds + usize::from(!volume["host"]["sourcePath"].is_null()) > 1 {
        return client("When the volume parameter is specified, only one volume configuration type should be used.");
    }
    let efs = &volume["efsVolumeConfiguration"];
    if !efs.is_null() {
        let may = &efs["authorizationConfig"];
        let is_encrypted = efs["transitEncryption"] == "ENABLED";
        if !is_encrypted && (may["iam"] == "ENABLED" || !may["accessPointId"].is_null()) {
            return client("transitEncryption: must be on if an access point or IAM authorization is used");
        }
        if !may["accessPointId"].is_null() && !matches!(text(efs, "rootDirectory"), "" | "/") {
            return client(
                "When using an EFS access point, the root directory must either be set to \"/\" or be omitted.",
            );
        }
    }
    let files = &volume["s3filesVolumeConfiguration"];
    if !files.is_null() {
        if body["taskRoleArn"].is_null() {
            return client("s3filesVolumeConfiguration: needs a task role");
        }
        if !files["accessPointArn"].is_null() && !matches!(text(files, "rootDirectory"), "" | "/") {
            return client("rootDirectory: must be omitted or set to / if an access point is specified");
        }
    }
    Ok(())
}
