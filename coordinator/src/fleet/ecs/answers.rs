//! What ECS's answers mean: whom it pays to ask again, and why a task has ended.
//!
//! Failures: <https://docs.aws.amazon.com/AmazonECS/latest/developerguide/api_failures_messages.html>; stopped tasks:
//! <https://docs.aws.amazon.com/AmazonECS/latest/developerguide/stopped-task-error-codes.html>.

use std::error::Error;

use aws_sdk_ecs::{
    error::{ProvideErrorMetadata, SdkError},
    types::{Container, Failure, Task, TaskStopCode},
};

use super::definition::{COMMAND, COORDINATOR, WORKER};
use crate::fleet::engine::{Class, EngineError, State};

/// An error of any call.
pub(super) fn error<E>(error: &SdkError<E>) -> EngineError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(service) => {
            let (code, message) = (service.err().code().unwrap_or_default(), service.err().message());
            let message = message.unwrap_or_default();
            EngineError::new(class(service.raw().status().as_u16(), code, message), format!("{code}: {message}"))
        }
        // Without credentials or an address of its own no request is ever sent.
        SdkError::ConstructionFailure(_) => EngineError::new(Class::Permanent, innermost(error)),
        SdkError::DispatchFailure(failure) => {
            let unset = ["CredentialsNotLoaded", "no providers in chain"];
            let text = format!("{:?}", failure.as_connector_error());
            match unset.iter().any(|sign| text.contains(sign)) {
                true => EngineError::new(Class::Permanent, format!("no AWS credentials: {}", innermost(error))),
                false => EngineError::new(Class::Unknown, format!("AWS did not answer: {}", innermost(error))),
            }
        }
        _ => EngineError::new(Class::Unknown, format!("AWS did not answer: {}", innermost(error))),
    }
}

fn class(status: u16, code: &str, message: &str) -> Class {
    // ECS asks other services, and tells of their limits in errors that say otherwise that the request is wrong.
    let slow = ["Rate exceeded", "Throttling", "Too many concurrent attempts"];
    let full = ["Capacity is unavailable", "reached the limit", "No Container Instances were found"];
    match code {
        "ThrottlingException" | "Throttling" | "TooManyRequestsException" | "RequestLimitExceeded" => Class::Throttled,
        // Nothing was done, and the next try has other credentials.
        "ExpiredTokenException" | "RequestExpired" => Class::Throttled,
        _ if status >= 500 || code == "ServerException" => Class::Unknown,
        _ if slow.iter().any(|text| message.contains(text)) => Class::Throttled,
        _ if full.iter().any(|text| message.contains(text)) => Class::Capacity,
        _ => Class::Permanent,
    }
}

/// Why a task was not started, of an answer that tells of others that were.
pub(super) fn failure(failure: &Failure) -> EngineError {
    let reason = failure.reason().unwrap_or("no reason");
    let why = match failure.detail() {
        Some(detail) => format!("{reason} ({detail})"),
        None => reason.to_owned(),
    };
    // No instance that will ever come has what is missing.
    let never = matches!(reason, "ATTRIBUTE" | "LOCATION" | "INACTIVE" | "MemberOf placement constraint unsatisfied");
    EngineError::new(if never { Class::Permanent } else { Class::Capacity }, why)
}

/// Whether a task that is to be stopped is not there.
pub(super) fn is_gone<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let of = error.as_service_error().map(|error| (error.code(), error.message().unwrap_or_default()));
    matches!(of, Some((Some("InvalidParameterException"), message)) if message.contains("not found"))
}

/// What a task does.
pub(super) fn state(task: &Task) -> State {
    match (task.last_status().unwrap_or_default(), task.desired_status()) {
        ("STOPPED" | "DELETED", _) if is_evicted(task) => State::Evicted { why: why(task) },
        ("STOPPED" | "DELETED", _) => State::Ended { why: why(task) },
        ("DEACTIVATING" | "STOPPING" | "DEPROVISIONING", _) | (_, Some("STOPPED")) => State::Ending,
        ("RUNNING", _) => State::Running,
        _ => State::Queued,
    }
}

/// Whether it was Spot, or there was no place, or its host failed: the next task may have more luck.
fn is_evicted(task: &Task) -> bool {
    let taken = [TaskStopCode::SpotInterruption, TaskStopCode::InfrastructureHealth, TaskStopCode::TerminationNotice];
    task.stop_code().is_some_and(|code| taken.contains(code))
        || task.stopped_reason().is_some_and(|reason| reason.contains("Capacity is unavailable"))
}

/// The one that is forebay's: AWS may add others.
fn container(task: &Task) -> Option<&Container> {
    let is_own = |name: &str| [WORKER, COORDINATOR, COMMAND].contains(&name);
    task.containers().iter().find(|container| container.name().is_some_and(is_own))
}

/// How the task's program has ended.
pub(super) fn exit_code(task: &Task) -> Option<i32> {
    container(task)?.exit_code()
}

/// Why a task has ended, by what ECS says of it and of its container, with what to do where that is known.
pub(super) fn why(task: &Task) -> String {
    let container = container(task);
    let reason = container.and_then(|container| container.reason());
    let exit = exit_code(task);
    let said = reason.or(task.stopped_reason()).unwrap_or("no reason is known");
    if task.stop_code() == Some(&TaskStopCode::SpotInterruption) {
        return format!("Spot took its capacity back: {said}");
    }
    if said.contains("OutOfMemoryError") {
        let is_worker = container.and_then(|container| container.name()) == Some(WORKER);
        let table = if is_worker { "ecs" } else { "coordinator" };
        return format!("it ran out of memory: {said}; give it more by [{table}] memory");
    }
    if said.contains("CannotPullContainerError") {
        return format!("its image cannot be pulled: {said}; see [ecs] image and execution_role");
    }
    match (exit, task.stop_code()) {
        (Some(code), _) => format!("exit code {code}: {said}"),
        (None, Some(TaskStopCode::TaskFailedToStart)) => format!("it could not start: {said}"),
        (None, _) => said.to_owned(),
    }
}

fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_stays() {
        let invalid = "InvalidParameterException";
        for (status, code, message, expected) in [
            (400, "ThrottlingException", "Rate exceeded", Class::Throttled),
            (400, invalid, "Error retrieving subnet information for [subnet-1]: Rate exceeded", Class::Throttled),
            (400, "ClientException", "Too many concurrent attempts to create a new revision", Class::Throttled),
            (400, "ExpiredTokenException", "The security token included in the request is expired", Class::Throttled),
            (400, invalid, "No Container Instances were found in your cluster.", Class::Capacity),
            (400, "ClientException", "You've reached the limit on the number of vCPUs", Class::Capacity),
            (500, "ServerException", "Service Unavailable", Class::Unknown),
            (503, "", "", Class::Unknown),
            (400, "ClusterNotFoundException", "Cluster not found.", Class::Permanent),
            (400, "AccessDeniedException", "not authorized to perform: ecs:RunTask", Class::Permanent),
        ] {
            assert_eq!(class(status, code, message), expected, "{code} {message}");
        }
        let of = |reason: &str| failure(&Failure::builder().reason(reason).build()).class;
        assert_eq!(of("Capacity is unavailable at this time. Please try again later"), Class::Capacity);
        assert_eq!(
            [of("RESOURCE:MEMORY"), of("AGENT"), of("ATTRIBUTE")],
            [Class::Capacity, Class::Capacity, Class::Permanent]
        );
    }

    #[test]
    fn an_end_tells_its_cause_and_what_helps() {
        let ended = |code: Option<TaskStopCode>, stopped: &str, reason: Option<&str>, exit: Option<i32>| {
            let container = Container::builder().name(WORKER).set_exit_code(exit);
            let container = container.set_reason(reason.map(str::to_owned)).build();
            let task = Task::builder().last_status("STOPPED").set_stop_code(code).stopped_reason(stopped);
            match state(&task.containers(container).build()) {
                State::Ended { why } => why,
                State::Evicted { why } => format!("evicted: {why}"),
                other => panic!("{other:?}"),
            }
        };
        let exited = Some(TaskStopCode::EssentialContainerExited);
        let essential = "Essential container in task exited";
        assert_eq!(ended(exited.clone(), essential, None, Some(4)), "exit code 4: Essential container in task exited");
        assert_eq!(
            ended(exited, essential, Some("OutOfMemoryError: Container killed due to memory usage"), Some(137)),
            "it ran out of memory: OutOfMemoryError: Container killed due to memory usage; give it more by [ecs] memory"
        );
        assert_eq!(
            ended(Some(TaskStopCode::SpotInterruption), "Your Spot Task was interrupted.", None, Some(0)),
            "evicted: Spot took its capacity back: Your Spot Task was interrupted."
        );
        let pull = "CannotPullContainerError: pull image manifest has been retried 1 time(s): not found";
        assert_eq!(
            ended(Some(TaskStopCode::TaskFailedToStart), pull, None, None),
            format!("its image cannot be pulled: {pull}; see [ecs] image and execution_role")
        );
        let network = "Timeout waiting for network interface provisioning to complete.";
        let failed = Some(TaskStopCode::TaskFailedToStart);
        assert_eq!(ended(failed, network, None, None), format!("it could not start: {network}"));
    }

    #[test]
    fn a_task_that_is_to_stop_is_ending_though_it_runs() {
        let task =
            |last: &str, desired: &str| state(&Task::builder().last_status(last).desired_status(desired).build());
        assert_eq!(task("RUNNING", "RUNNING"), State::Running);
        assert_eq!(task("RUNNING", "STOPPED"), State::Ending);
        assert_eq!(task("DEPROVISIONING", "STOPPED"), State::Ending);
        for waiting in ["PROVISIONING", "PENDING", "ACTIVATING"] {
            assert_eq!(task(waiting, "RUNNING"), State::Queued);
        }
    }
}
