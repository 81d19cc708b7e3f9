//! What the engine asks the API server for, and what it makes of a Job's life.

use forebay_coordinator::fleet::engine::{Call, Class, Engine, Sighting, State, Tag};
use forebay_jobs::id::MemberId;

use crate::{
    fixture::{Fixture, PATIENT, state},
    server::{Failing, Refusal},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_one_job_however_often_it_is_made_and_whatever_answer_was_lost() {
    let fixture = Fixture::new(PATIENT).await;
    let timeout = Refusal::new(500, "InternalError", "etcdserver: request timed out");
    fixture.server.fail("POST", "/jobs", 1, Failing::Lose(timeout));
    assert_eq!(fixture.refused(7).await.class, Class::Unknown);
    let call = Call { again: true, ..fixture.call(7, 1) };
    for _ in 0..2 {
        let members = fixture.engine.start(&call).await.unwrap().members;
        assert_eq!(members, [format!("{}-0", call.token).parse().unwrap()]);
    }
    fixture.are_running(1).await;
    let posts = fixture.server.requests().into_iter().filter(|request| request.method == "POST");
    assert_eq!(posts.map(|request| request.status).collect::<Vec<_>>(), [500, 409, 409]);
    assert_eq!(fixture.server.jobs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_says_all_that_the_job_file_does() {
    let more = "pull_policy = 'IfNotPresent'\npull_secrets = ['registry']\nsub_path = 'a/b'\nmount = '/forebay'\n\
                service_account = 'workers'\ngroup = 7\npriority_class = 'low'\ngrace = '40s'\nttl = '1m'\n\
                node_selector = { pool = 'batch' }\ntolerations = [{ key = 'spot', effect = 'NoSchedule' }]\n\
                labels = { team = 'a' }\nannotations = { 'example.org/cost' = 'b c' }\n";
    let fixture = Fixture::with(PATIENT, more).await;
    fixture.start(1, 2).await;
    let job = fixture.server.manifests().remove(0);
    let (spec, meta) = (&job["spec"], &job["metadata"]);
    assert_eq!(meta["name"], format!("{}-1-00000001", fixture.tag.as_str()));
    assert_eq!((&meta["labels"]["team"], &meta["annotations"]["forebay/run"]), (&"a".into(), &"r".into()));
    assert_eq!(meta["labels"], spec["template"]["metadata"]["labels"]);
    assert_eq!(meta["annotations"]["example.org/cost"], "b c");
    let figures = ["completions", "parallelism", "backoffLimitPerIndex", "ttlSecondsAfterFinished"];
    assert_eq!(figures.map(|name| spec[name].as_i64().unwrap()), [2, 2, 0, 60]);
    let pod = &spec["template"]["spec"];
    // What is left of its hour when the image is there is its worker's.
    assert_eq!((&pod["activeDeadlineSeconds"], &pod["terminationGracePeriodSeconds"]), (&4200.into(), &40.into()));
    assert_eq!((&pod["nodeSelector"]["pool"], &pod["serviceAccountName"]), (&"batch".into(), &"workers".into()));
    assert_eq!(pod["tolerations"], serde_json::json!([{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]));
    assert_eq!((&pod["priorityClassName"], &pod["imagePullSecrets"][0]["name"]), (&"low".into(), &"registry".into()));
    assert_eq!(pod["automountServiceAccountToken"], false);
    let security = &pod["securityContext"];
    assert_eq!((&security["runAsUser"], &security["runAsGroup"]), (&1000.into(), &7.into()));
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(
        container["args"],
        serde_json::json!(["worker", "--volume", "/forebay", "--run", "r", "--slots", "1", "--time", "3600s"])
    );
    let resources = serde_json::json!({
        "limits": {"memory": "1280Mi", "nvidia.com/gpu": "1"},
        "requests": {"memory": "1280Mi", "nvidia.com/gpu": "1", "cpu": "2"},
    });
    assert_eq!(container["resources"], resources);
    assert_eq!(container["volumeMounts"][0]["subPath"], "a/b");
    assert!(container["env"].to_string().contains(r#"{"name":"CUDA_VISIBLE_DEVICES","value":"0"}"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_read_to_their_end_and_anew_if_the_server_has_forgotten_them() {
    let fixture = Fixture::new(PATIENT).await;
    let of_others = Tag::of("volume", &"other".parse().unwrap());
    let members = fixture.start(1, 7).await;
    fixture.are_running(7).await;
    assert!(of_others.token(members[0].as_str().rsplit_once('-').unwrap().0).is_none());
    fixture.server.set(|settings| settings.page = 2);
    let before = fixture.server.requests().len();
    assert_eq!(fixture.list().await.len(), 7);
    let pages = fixture.server.requests().split_off(before);
    assert_eq!(pages.iter().filter(|request| request.path.ends_with("/pods")).count(), 4);
    assert!(pages.iter().all(|page| page.query["labelSelector"].ends_with(fixture.tag.as_str())));
    let gone = Refusal::new(410, "Expired", "too old");
    fixture.server.fail("GET", "/pods", 1, Failing::Refuse(gone.clone()));
    assert_eq!(fixture.list().await.len(), 7);
    fixture.server.fail("GET", "/pods", 9, Failing::Refuse(gone));
    assert_eq!(fixture.engine.list(&[]).await.unwrap_err().class, Class::Throttled);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_stopped_is_not_begun_again_and_the_last_ones_take_their_job_along() {
    let fixture = Fixture::new(PATIENT).await;
    let members = fixture.start(1, 3).await;
    fixture.are_running(3).await;
    fixture.engine.stop(&members[1..2]).await.unwrap();
    let list = fixture.has_ended(&members[1]).await;
    assert_eq!(list.iter().filter(|sighting| sighting.state == State::Running).count(), 2);
    assert_eq!((fixture.server.jobs().len(), fixture.server.left()), (1, 2));
    // Those that are gone, or never were, are none to stop.
    fixture.engine.stop(&[members[1].clone(), "forebay-x".parse().unwrap()]).await.unwrap();
    assert_eq!(fixture.server.left(), 2);
    fixture.engine.stop(&[members[0].clone(), members[2].clone()]).await.unwrap();
    fixture.until("all are gone", <[_]>::is_empty).await;
    assert_eq!((fixture.server.jobs().len(), fixture.server.pods().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_for_a_node_can_be_stopped_too() {
    let fixture = Fixture::new(PATIENT).await;
    let why = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu";
    fixture.server.set(|settings| settings.unschedulable = Some(why.to_owned()));
    let members = fixture.start(1, 2).await;
    let queued = |list: &[Sighting]| list.iter().all(|sighting| sighting.state == State::Queued) && list.len() == 2;
    fixture.until("they wait", |list| queued(list) && fixture.server.pods().len() == 2).await;
    fixture.engine.stop(&members[..1]).await.unwrap();
    fixture.has_ended(&members[0]).await;
    fixture.server.set(|settings| settings.unschedulable = None);
    fixture.are_running(1).await;
    assert_eq!(fixture.server.pods().iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_disrupted_is_begun_anew_and_who_fails_is_not() {
    let script = "test $JOB_COMPLETION_INDEX = 2 && { echo the reason; exit 4; }\n\
                  trap 'exit 3' TERM; is_ready; while :; do sleep 0.02; done";
    let fixture = Fixture::new(script).await;
    let members = fixture.start(1, 3).await;
    fixture.are_running(2).await;
    let list = fixture.has_ended(&members[2]).await;
    assert_eq!(state(&list, &members[2]).state, State::Ended { why: "exit code 4".to_owned() });
    assert_eq!(fixture.engine.explain(&members[2]).await.as_deref(), Some("the reason"));
    fixture.server.evict(&fixture.pod(&members[0]));
    let anew = |member: &MemberId, life: u32| {
        let member = member.clone();
        move |list: &[Sighting]| {
            let it = state(list, &member);
            assert!(matches!(it.state, State::Running | State::Queued), "it keeps its place: {it:?}");
            it.state == State::Running && it.life == life
        }
    };
    fixture.until("it is evicted and begun anew", anew(&members[0], 1)).await;
    // Its worker goes on, on a node that is cut off.
    fixture.server.lose_node_of(&fixture.pod(&members[1]));
    fixture.until("its node is lost and it is begun anew", |list| state(list, &members[1]).life == 1).await;
    let list = fixture.are_running(2).await;
    let lives = [0, 1, 2].map(|index: usize| state(&list, &members[index]).life);
    // The first may have been on that node too.
    assert!(matches!(lives, [1 | 2, 1, 0]), "{list:?}");
    assert!(fixture.server.adrift() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pods_of_an_index_are_one_member_and_both_are_stopped() {
    let fixture = Fixture::new(PATIENT).await;
    let members = fixture.start(1, 2).await;
    fixture.are_running(2).await;
    fixture.server.duplicate(&fixture.pod(&members[0]));
    fixture.until("there are three pods", |_| fixture.server.at_work().len() == 3).await;
    assert_eq!(fixture.list().await.len(), 2);
    fixture.engine.stop(&members[..1]).await.unwrap();
    fixture.has_ended(&members[0]).await;
    fixture.until("both are gone", |_| fixture.server.left() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_disrupted_and_ends_in_order_has_ended() {
    let fixture = Fixture::new(PATIENT).await;
    let members = fixture.start(1, 1).await;
    fixture.are_running(1).await;
    fixture.server.evict(&fixture.pod(&members[0]));
    fixture.has_ended(&members[0]).await;
    fixture
        .until("its Job has ended too", |_| fixture.server.jobs()[0].status.as_ref().unwrap().conditions.is_some())
        .await;
    assert_eq!(fixture.server.left(), 0);
}
