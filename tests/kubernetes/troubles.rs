//! What is refused, what keeps pods from their work, and what is told of it.

use std::{
    fs,
    time::{Duration, Instant},
};

use forebay_coordinator::fleet::engine::{Class, Engine, Sighting, State};

use crate::{
    fixture::{Fixture, PATIENT, state},
    server::{Failing, Logged, Refusal},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_to_be_left_alone_is() {
    let fixture = Fixture::new(PATIENT).await;
    let busy = Refusal { retry_after: Some(2), ..Refusal::new(429, "TooManyRequests", "Too many requests") };
    fixture.server.fail("POST", "/jobs", 1, Failing::Refuse(busy));
    let refused = Instant::now();
    assert_eq!(fixture.refused(1).await.class, Class::Throttled);
    let asked = fixture.server.requests().len();
    while fixture.engine.list(&[]).await.is_err_and(|error| error.class == Class::Throttled) {
        assert_eq!(fixture.server.requests().len(), asked, "nothing is sent meanwhile");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(refused.elapsed() >= Duration::from_secs(2));
    fixture.start(1, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_waited_for_whether_it_is_of_jobs_or_of_pods() {
    let fixture = Fixture::new(PATIENT).await;
    fixture.server.set(|settings| (settings.jobs, settings.pods) = (Some(1), Some(2)));
    let members = fixture.start(1, 4).await;
    let error = fixture.refused(2).await;
    assert_eq!(error.class, Class::Capacity);
    assert!(error.why.contains("exceeded quota") && error.why.contains("raise the quota"), "{error}");
    let list = fixture.are_running(2).await;
    assert_eq!(list.iter().filter(|sighting| sighting.state == State::Queued).count(), 2);
    let asks = |request: &Logged| request.path.ends_with("/events");
    fixture.until("events are asked", |_| fixture.server.requests().iter().any(asks)).await;
    // More room, and those that waited run.
    fixture.server.set(|settings| settings.pods = None);
    fixture.are_running(4).await;
    fixture.engine.stop(&members).await.unwrap();
    fixture.until("all are gone", <[_]>::is_empty).await;
}

/// No pod will ever work: who is asked for more says why.
async fn is_hopeless(fixture: &Fixture, word: &str) {
    let members = fixture.start(1, 2).await;
    fixture
        .until("they count no more", |list| {
            list.iter().all(|it| matches!(it.state, State::Ending | State::Ended { .. })) && list.len() == 2
        })
        .await;
    let error = fixture.refused(2).await;
    assert_eq!(error.class, Class::Permanent);
    assert!(error.why.contains(word) && error.why.contains("; "), "{error}");
    assert_eq!(fixture.posts(), 1);
    fixture.engine.stop(&members).await.unwrap();
    fixture.until("all are gone", |list| list.is_empty() && fixture.server.pods().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_there_is_told_and_nothing_more_is_started() {
    let fixture = Fixture::new(PATIENT).await;
    let why = ("ImagePullBackOff".to_owned(), "Back-off pulling image \"i:1\": i:1: not found".to_owned());
    fixture.server.set(|settings| settings.image = Some(why));
    is_hopeless(&fixture, "ImagePullBackOff").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_is_told() {
    let fixture = Fixture::new(PATIENT).await;
    let why = ("CreateContainerConfigError".to_owned(), "failed to prepare subPath for volumeMount".to_owned());
    fixture.server.set(|settings| settings.image = Some(why));
    is_hopeless(&fixture, "subPath").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_are_not_admitted_are_told_by_what_events_say() {
    let fixture = Fixture::new(PATIENT).await;
    let why = "violates PodSecurity \"restricted:latest\": hostPath volumes";
    fixture.server.set(|settings| settings.admission = Some(why.to_owned()));
    is_hopeless(&fixture, "PodSecurity").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_not_there_is_told() {
    let fixture = Fixture::new(PATIENT).await;
    let why = "0/3 nodes are available: persistentvolumeclaim \"c\" not found.";
    fixture.server.set(|settings| settings.unschedulable = Some(why.to_owned()));
    is_hopeless(&fixture, "ReadWriteMany").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_in_the_image_is_told() {
    let fixture = Fixture::with(PATIENT, "").await;
    fs::remove_file(fixture.dir.path().join("program")).unwrap();
    is_hopeless(&fixture, "program").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_fails_on_one_node_ends_nothing_while_others_work() {
    let fixture = Fixture::new(PATIENT).await;
    fixture.start(1, 1).await;
    fixture.are_running(1).await;
    let why = ("ErrImagePull".to_owned(), "denied".to_owned());
    fixture.server.set(|settings| settings.image = Some(why));
    let members = fixture.start(2, 1).await;
    let waits = |list: &[Sighting]| state(list, &members[0]).state == State::Queued;
    fixture.until("it waits", |list| waits(list) && fixture.server.pods().len() == 2).await;
    fixture.server.set(|settings| settings.image = None);
    fixture.are_running(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_killed_for_want_of_memory_ends_with_a_word_of_what_to_do() {
    let fixture = Fixture::new(PATIENT).await;
    let members = fixture.start(1, 2).await;
    fixture.are_running(2).await;
    fixture.server.out_of_memory(&fixture.pod(&members[0]));
    let list = fixture.has_ended(&members[0]).await;
    let State::Ended { why } = &state(&list, &members[0]).state else { unreachable!() };
    assert!(why.contains("1280Mi") && why.contains("raise [workers] memory") && why.contains("137"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_not_tried_again_by_themselves() {
    let fixture = Fixture::new(PATIENT).await;
    let refusals = [
        (403, "jobs.batch is forbidden: User \"u\" cannot create resource \"jobs\"", Class::Permanent, "Role"),
        (401, "Unauthorized", Class::Permanent, "credentials"),
        (404, "namespaces \"batch\" not found", Class::Permanent, "namespace"),
        (403, "admission webhook \"w\" denied the request: no", Class::Permanent, "administrators"),
        (503, "apiserver is shutting down", Class::Unknown, "shutting down"),
    ];
    for (asked, (code, message, class, help)) in refusals.into_iter().enumerate() {
        fixture.server.fail("POST", "/jobs", 1, Failing::Refuse(Refusal::new(code, "", message)));
        let error = fixture.refused(1).await;
        assert_eq!((error.class, fixture.posts()), (class, asked + 1), "{error}");
        assert!(error.why.contains(message) && error.why.contains(help), "{error}");
    }
}
