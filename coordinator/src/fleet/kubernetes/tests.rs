mod double;
mod real;

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use serde_json::{Value, json};

use super::*;
use crate::fleet::engine::Tag;

const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// The engine of a run of a volume `v`, by what its job says of Kubernetes beside image, claim and user.
async fn engine(run: &str, says: &str) -> Kubernetes {
    let text = format!(
        "name = 'j'\n[dataset]\nsource = 'file:///x'\n[command]\nargv = ['a']\n[workers]\nfleet = 'kubernetes'\n\
         [kubernetes]\nimage = 'i:1'\nclaim = 'c'\nuser = 1000\n{says}"
    );
    let job = forebay_jobs::spec::parse::job_file(&text, Path::new("/"), &[]).unwrap();
    let run: RunId = run.parse().unwrap();
    let tag = Tag::of("v", &run);
    let command = WorkerCommand { program: "x".into(), volume: "/v".into(), run, slots: 1, pretend: false };
    Kubernetes::open(PodConfig::new(&job, &tag, command).unwrap()).await.unwrap()
}

fn tag() -> Tag {
    Tag::of("v", &"r".parse().unwrap())
}

fn name(nonce: u32) -> String {
    format!("{}-1-{nonce:08x}", tag().as_str())
}

fn job(nonce: u32, completions: u32, status: Value) -> Job {
    let spec = json!({"completions": completions, "template": {}});
    serde_json::from_value(json!({"metadata": {"name": name(nonce)}, "spec": spec, "status": status})).unwrap()
}

/// The `n`th pod of an index of the first Job.
fn pod(index: u32, n: u32, more: Value) -> Pod {
    let mut pod = json!({
        "metadata": {
            "name": format!("{}-{index}-{n}", name(1)),
            "labels": {"batch.kubernetes.io/job-name": name(1)},
            "annotations": {INDEX: index.to_string()},
            "creationTimestamp": format!("2026-01-01T00:00:{n:02}Z"),
        },
        "status": {"phase": "Running"},
    });
    merge(&mut pod, &more);
    serde_json::from_value(pod).unwrap()
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(fields), Value::Object(more)) => {
            for (name, value) in more {
                merge(fields.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

fn leaving() -> Value {
    json!({"metadata": {"deletionTimestamp": "2026-01-01T00:01:00Z"}})
}

fn with(mut value: Value, more: &Value) -> Value {
    merge(&mut value, more);
    value
}

fn disrupted() -> Value {
    json!({"status": {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]}})
}

fn phase(phase: &str) -> Value {
    json!({"status": {"phase": phase}})
}

fn waiting(reason: &str, message: &str) -> Value {
    let state = json!({"waiting": {"reason": reason, "message": message}});
    json!({"status": {"phase": "Pending", "containerStatuses": [{"name": "worker", "state": state}]}})
}

fn terminated(reason: &str, code: i32, message: &str) -> Value {
    let state = json!({"terminated": {"reason": reason, "exitCode": code, "message": message}});
    json!({"status": {"phase": "Failed", "containerStatuses": [{"name": "worker", "state": state}]}})
}

fn states(jobs: &[Job], pods: &[Pod]) -> Vec<(String, State, u32)> {
    let seen = sight::seen(&tag(), jobs, pods);
    let short = |member: &MemberId| member.as_str().rsplit_once('-').unwrap().1.to_owned();
    let shown = seen.members.into_iter().map(|it| it.sighting);
    shown.map(|it| (short(&it.member), it.state, it.life)).collect()
}

fn only(pods: &[Pod]) -> (State, u32) {
    let states = states(&[job(1, 1, json!({}))], pods);
    assert_eq!(states.len(), 1);
    (states[0].1.clone(), states[0].2)
}

#[test]
fn an_index_is_a_member_whether_or_not_it_has_a_pod() {
    let status = json!({"completedIndexes": "0,2-4", "failedIndexes": "6"});
    let states = states(&[job(1, 8, status)], &[pod(5, 1, json!({})), pod(7, 1, phase("Pending"))]);
    let gone = State::Ended { why: "its Job has ended, and its pod is gone".to_owned() };
    let expected = [&gone, &State::Queued, &gone, &gone, &gone, &State::Running, &gone, &State::Queued];
    assert!(states.iter().map(|(_, state, _)| state).eq(expected), "{states:?}");
}

#[test]
fn what_is_not_of_the_run_is_not_seen() {
    let mut of_others = job(1, 1, json!({}));
    of_others.metadata.name = Some("forebay-0000000000000000-1-00000001".to_owned());
    let mut by_hand = pod(0, 1, json!({}));
    by_hand.metadata.labels.as_mut().unwrap().insert("batch.kubernetes.io/job-name".to_owned(), "else".to_owned());
    assert!(states(&[of_others], &[by_hand]).is_empty());
}

#[test]
fn a_pod_that_is_disrupted_keeps_its_place_and_its_next_one_is_another_life() {
    assert_eq!(only(&[pod(0, 1, with(disrupted(), &leaving()))]), (State::Running, 0));
    assert_eq!(only(&[pod(0, 1, with(disrupted(), &phase("Failed")))]), (State::Queued, 1));
    let anew = json!({"metadata": {"annotations": {
        "batch.kubernetes.io/job-index-failure-count": "0", "batch.kubernetes.io/job-index-ignored-failure-count": "1",
    }}});
    let old = pod(0, 1, with(disrupted(), &phase("Failed")));
    assert_eq!(only(&[old.clone(), pod(0, 2, with(anew.clone(), &phase("Pending")))]), (State::Queued, 1));
    assert_eq!(only(&[pod(0, 2, anew), old]), (State::Running, 1));
}

#[test]
fn a_pod_that_is_deleted_is_ending_and_one_that_failed_is_not_begun_again() {
    assert_eq!(only(&[pod(0, 1, leaving())]).0, State::Ending);
    assert_eq!(only(&[pod(0, 1, phase("Succeeded"))]).0, State::Ended { why: "it says nothing of it".to_owned() });
    let failed = pod(0, 1, terminated("Error", 3, "words"));
    assert_eq!(trouble::last_words(&failed).as_deref(), Some("words"));
    assert_eq!(only(&[failed]).0, State::Ended { why: "exit code 3".to_owned() });
    // Of two the one that stays.
    assert_eq!(only(&[pod(0, 1, json!({})), pod(0, 2, leaving())]).0, State::Running);
}

#[test]
fn pods_whose_job_is_gone_or_going_are_ending() {
    assert_eq!(states(&[], &[pod(3, 1, json!({}))])[0].1, State::Ending);
    let mut going = job(1, 2, json!({}));
    going.metadata.deletion_timestamp = pod(0, 1, leaving()).metadata.deletion_timestamp;
    let states = states(&[going], &[pod(0, 1, json!({}))]);
    assert!(matches!((&states[0].1, &states[1].1), (State::Ending, State::Ended { .. })), "{states:?}");
}

#[test]
fn what_ends_a_pod_is_told_with_what_to_do() {
    let limits = json!({"spec": {"containers": [{"name": "w", "resources": {"limits": {"memory": "4Gi"}}}]}});
    let State::Ended { why } = only(&[pod(0, 1, with(terminated("OOMKilled", 137, ""), &limits))]).0 else { panic!() };
    assert!(why.contains("limit of 4Gi") && why.contains("raise [workers] memory"), "{why}");
    let evicted = json!({"status": {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}});
    let State::Ended { why } = only(&[pod(0, 1, evicted)]).0 else { panic!() };
    assert!(why.contains("low on memory") && why.contains("Evicted"), "{why}");
    let late = json!({"status": {"phase": "Failed", "reason": "DeadlineExceeded"}});
    assert_eq!(only(&[pod(0, 1, late)]).0, State::Ended { why: "DeadlineExceeded".to_owned() });
}

fn judged(view: &mut View, pods: &[Pod], now: Instant) -> Vec<State> {
    let seen = sight::seen(&tag(), &[job(1, 2, json!({}))], pods);
    view.judge(seen, now).into_iter().map(|sighting| sighting.state).collect()
}

#[test]
fn an_image_that_may_still_come_is_waited_for_and_then_not_any_more() {
    let (mut view, begun) = (View::default(), Instant::now());
    let pods = [0, 1].map(|index| pod(index, 1, waiting("ImagePullBackOff", "Back-off pulling image")));
    assert_eq!(judged(&mut view, &pods, begun), [State::Queued, State::Queued]);
    // It is seen pulling in between, and that is no end of the trouble of the other.
    assert_eq!(judged(&mut view, &pods[..1], begun + MAY_PASS / 2), [State::Queued, State::Queued]);
    assert_eq!(view.hopeless, None);
    assert_eq!(judged(&mut view, &pods, begun + MAY_PASS), [State::Ending, State::Queued]);
    assert!(view.hopeless.as_ref().unwrap().contains("pull_secrets"));
    // Once one has run, what they are made of is right.
    let state = json!({"running": {}});
    let ran = json!({"status": {"containerStatuses": [{"name": "worker", "state": state}]}});
    assert_eq!(
        judged(&mut view, &[pods[0].clone(), pod(1, 1, ran)], begun + MAY_PASS),
        [State::Queued, State::Running]
    );
    assert_eq!(view.hopeless, None);
}

#[test]
fn what_a_registry_refuses_is_not_waited_for() {
    let mut view = View::default();
    let pods = [pod(0, 1, waiting("ErrImagePull", "pull access denied, repository does not exist"))];
    assert_eq!(judged(&mut view, &pods, Instant::now()), [State::Ending, State::Queued]);
}

#[test]
fn events_are_asked_of_one_object_at_a_time_and_of_those_alone_that_keep_silent() {
    let (mut view, begun) = (View::default(), Instant::now());
    let pending = pod(1, 1, phase("Pending"));
    let look = |view: &mut View, now| {
        view.long_silent(&sight::seen(&tag(), &[job(1, 2, json!({}))], std::slice::from_ref(&pending)), now)
    };
    assert_eq!(look(&mut view, begun), None);
    let (the_job, the_pod) = (name(1), format!("{}-1-1", name(1)));
    let mut asked = [0, 1].map(|_| look(&mut view, begun + SILENT).unwrap());
    asked.sort();
    assert_eq!(asked, [the_job, the_pod]);
    assert_eq!(look(&mut view, begun + SILENT), None);
    assert!(look(&mut view, begun + 2 * SILENT).is_some());
}

#[test]
fn events_tell_why_pods_are_not_made_and_volumes_not_mounted() {
    let event = |reason: &str, message: &str| {
        serde_json::from_value(json!({
            "metadata": {}, "involvedObject": {}, "reason": reason, "message": message, "type": "Warning",
        }))
        .unwrap()
    };
    let class = |reason: &str, message: &str| trouble::of_events(&[event(reason, message)]).map(|it| it.class);
    assert_eq!(class("FailedCreate", "pods is forbidden: exceeded quota: q"), Some(Class::Capacity));
    assert_eq!(class("FailedCreate", "pods is forbidden: violates PodSecurity"), Some(Class::Permanent));
    assert_eq!(class("FailedCreate", "Internal error occurred: timed out"), Some(Class::Unknown));
    assert_eq!(class("FailedMount", "MountVolume.SetUp failed"), Some(Class::Capacity));
    assert_eq!(class("BackOff", "x"), None);
}
