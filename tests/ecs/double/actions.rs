//! What ECS does and answers, once the rules allow it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Shared, State, Task, life, rules, rules::Refusal};

const ARN: &str = "arn:aws:ecs:us-east-1:123456789012";
/// Tasks of a page of ListTasks: few, so that there are several pages.
const PAGE: usize = 16;
/// Lines of a page of GetLogEvents.
const LINES: usize = 4;

pub enum Answer {
    Done(Value),
    /// The error's type, its message, and what else it tells.
    Refused(&'static str, String, Value),
    /// It was done, and nobody hears of it.
    Lost,
}

impl From<Refusal> for Answer {
    fn from((error, message): Refusal) -> Self {
        Self::Refused(error, message, json!({}))
    }
}

pub fn task_arn(id: &str) -> String {
    format!("{ARN}:task/c/{id}")
}

fn id_of(task: &str) -> &str {
    task.rsplit('/').next().unwrap()
}

pub fn answer(shared: &Arc<Shared>, action: &str, body: &Value) -> Answer {
    if !body["cluster"].is_null() && body["cluster"] != "c" {
        return ("ClusterNotFoundException", "Cluster not found.".to_owned()).into();
    }
    let done = match action {
        "RunTask" => return run_task(shared, body),
        "DescribeTasks" => describe_tasks(&shared.lock(), body),
        "ListTasks" => list_tasks(&shared.lock(), body),
        "StopTask" => stop_task(&mut shared.lock(), body),
        "RegisterTaskDefinition" => register(&mut shared.lock(), body),
        "DescribeTaskDefinition" => describe_definition(&shared.lock(), body),
        "GetLogEvents" => get_log_events(&shared.lock(), body),
        other => Err(("UnknownOperationException", format!("{other} is none of those that are known"))),
    };
    done.map_or_else(Answer::from, Answer::Done)
}

fn definition<'a>(state: &'a State, name: &str) -> Option<&'a Value> {
    let (family, revision) = name.rsplit('/').next().unwrap().rsplit_once(':').unwrap_or((name, "0"));
    let revisions = state.definitions.get(family);
    revisions.and_then(|all| match revision.parse::<usize>() {
        Ok(0) | Err(_) => all.last(),
        Ok(revision) => all.get(revision - 1),
    })
}

fn describe_definition(state: &State, body: &Value) -> Result<Value, Refusal> {
    let found = definition(state, body["taskDefinition"].as_str().unwrap_or_default());
    let found = found.ok_or(("ClientException", "Unable to describe task definition.".to_owned()))?;
    Ok(json!({ "taskDefinition": found, "tags": [] }))
}

fn register(state: &mut State, body: &Value) -> Result<Value, Refusal> {
    rules::register(body)?;
    let family = body["family"].as_str().unwrap();
    let revisions = state.definitions.entry(family.to_owned()).or_default();
    let (mut made, revision) = (body.clone(), revisions.len() + 1);
    made["revision"] = revision.into();
    made["status"] = "ACTIVE".into();
    made["taskDefinitionArn"] = format!("{ARN}:task-definition/{family}:{revision}").into();
    revisions.push(made.clone());
    Ok(json!({ "taskDefinition": made }))
}

fn run_task(shared: &Arc<Shared>, body: &Value) -> Answer {
    let mut state = shared.lock();
    let token = body["clientToken"].as_str().unwrap_or_default().to_owned();
    let count = u32::try_from(body["count"].as_u64().unwrap_or(1)).unwrap();
    let checked = definition(&state, body["taskDefinition"].as_str().unwrap_or_default()).cloned();
    let checked = checked.ok_or(("ClientException", "TaskDefinition not found.".to_owned()));
    let checked = checked.and_then(|definition| rules::run_task(body, &definition).map(|()| definition));
    let definition = match checked {
        Ok(definition) => definition,
        Err(refusal) => return refusal.into(),
    };
    if let Err(refusal) = state.calls.take(1) {
        return refusal.into();
    }
    if state.faults.throttle > 0 {
        state.faults.throttle -= 1;
        return ("ThrottlingException", "Rate exceeded".to_owned()).into();
    }
    if let Some((request, answer)) = state.tokens.get(&token) {
        if request == body {
            return Answer::Done(answer.clone());
        }
        let ids: Vec<_> = answer["tasks"].as_array().unwrap().iter().map(|task| task["taskArn"].clone()).collect();
        let message = "Idempotency token was used with other parameters".to_owned();
        return Answer::Refused("ConflictException", message, json!({ "resourceIds": ids }));
    }
    if let Err(refusal) = state.launches.take(count) {
        return refusal.into();
    }
    let refused = count.min(state.faults.no_capacity);
    state.faults.no_capacity -= refused;
    let mut tasks = Vec::new();
    for _ in refused..count {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:016x}{number:016x}", u64::from(std::process::id()));
        let task = Task {
            definition: definition.clone(),
            request: body.clone(),
            last: "PROVISIONING",
            desired: "RUNNING",
            stop_code: None,
            stopped_reason: None,
            exit: None,
            reason: None,
            seen_from: Instant::now() + state.faults.hidden_for,
            created: SystemTime::now(),
            started: None,
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        };
        tasks.push(described(&id, &task));
        state.tasks.insert(id.clone(), task);
        tokio::spawn(life::of_task(Arc::clone(shared), id));
    }
    let failure = json!({
        "arn": format!("{ARN}:container-instance/c/none"),
        "reason": "Capacity is unavailable at this time. Please try again later or in a different availability zone",
    });
    let failures = vec![failure; usize::from(refused > 0)];
    let answer = json!({ "tasks": tasks, "failures": failures });
    state.tokens.insert(token, (body.clone(), answer.clone()));
    if state.faults.lose_answers > 0 {
        state.faults.lose_answers -= 1;
        return Answer::Lost;
    }
    Answer::Done(answer)
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

fn described(id: &str, task: &Task) -> Value {
    let mut told = json!({
        "taskArn": task_arn(id),
        "taskDefinitionArn": task.definition["taskDefinitionArn"],
        "clusterArn": format!("{ARN}:cluster/c"),
        "lastStatus": task.last,
        "desiredStatus": task.desired,
        "startedBy": task.request["startedBy"],
        "overrides": task.request["overrides"],
        "tags": task.request["tags"],
        "createdAt": seconds(task.created),
        "containers": [{ "name": task.definition["containerDefinitions"][0]["name"], "lastStatus": task.last }],
    });
    if let Some(started) = task.started {
        told["startedAt"] = seconds(started).into();
    }
    let container = &mut told["containers"][0];
    if let Some(exit) = task.exit {
        container["exitCode"] = exit.into();
    }
    if let Some(reason) = task.reason {
        container["reason"] = reason.into();
    }
    if let (Some(code), Some(reason)) = (task.stop_code, &task.stopped_reason) {
        (told["stopCode"], told["stoppedReason"]) = (code.into(), reason.as_str().into());
    }
    told
}

fn describe_tasks(state: &State, body: &Value) -> Result<Value, Refusal> {
    rules::describe_tasks(body)?;
    let (mut tasks, mut failures) = (Vec::new(), Vec::new());
    let with_tags = body["include"].as_array().is_some_and(|include| include.contains(&json!("TAGS")));
    for asked in body["tasks"].as_array().unwrap() {
        let id = id_of(asked.as_str().unwrap());
        match state.tasks.get(id).filter(|task| task.seen_from <= Instant::now()) {
            Some(task) => {
                let mut told = described(id, task);
                if !with_tags {
                    told["tags"] = json!([]);
                }
                tasks.push(told);
            }
            None => failures.push(json!({ "arn": task_arn(id), "reason": "MISSING" })),
        }
    }
    Ok(json!({ "tasks": tasks, "failures": failures }))
}

fn list_tasks(state: &State, body: &Value) -> Result<Value, Refusal> {
    rules::list_tasks(body)?;
    let now = Instant::now();
    let is_asked_for = |task: &&Task| {
        task.desired == body["desiredStatus"].as_str().unwrap_or("RUNNING")
            && (body["family"].is_null() || task.definition["family"] == body["family"])
            && (body["startedBy"].is_null() || task.request["startedBy"] == body["startedBy"])
            && task.seen_from <= now
    };
    let found = state.tasks.iter().filter(|(_, task)| is_asked_for(task)).map(|(id, _)| id);
    let after = body["nextToken"].as_str().unwrap_or_default();
    let mut page: Vec<_> = found.filter(|id| id.as_str() > after).take(PAGE + 1).collect();
    let next = if page.len() > PAGE {
        page.truncate(PAGE);
        page.last().map(|id| (*id).clone())
    } else {
        None
    };
    Ok(json!({ "taskArns": page.iter().map(|id| task_arn(id)).collect::<Vec<_>>(), "nextToken": next }))
}

fn stop_task(state: &mut State, body: &Value) -> Result<Value, Refusal> {
    let id = id_of(body["task"].as_str().unwrap_or_default()).to_owned();
    let reason = body["reason"].as_str().unwrap_or("Task stopped by user").to_owned();
    let task = state.tasks.get_mut(&id);
    let task = task.ok_or(("InvalidParameterException", "The referenced task was not found.".to_owned()))?;
    task.ask_to_stop("UserInitiated", &reason);
    Ok(json!({ "task": described(&id, task) }))
}

/// Its token is how many lines were read.
fn get_log_events(state: &State, body: &Value) -> Result<Value, Refusal> {
    rules::get_log_events(body)?;
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let lines = state.logs.get(&(text("logGroupName"), text("logStreamName")));
    let lines = lines.ok_or(("ResourceNotFoundException", "The specified log stream does not exist.".to_owned()))?;
    let from = text("nextToken").strip_prefix("f/").map_or(0, |read| read.parse().unwrap());
    let now = Instant::now();
    let page: Vec<_> = lines[from..].iter().take_while(|(at, _)| *at <= now).take(LINES).collect();
    let events: Vec<_> = page.iter().map(|(_, line)| json!({ "timestamp": 0, "message": line })).collect();
    Ok(json!({ "events": events, "nextForwardToken": format!("f/{:056}", from + page.len()) }))
}
