//! What a fleet relies on, of the engine alone: tokens, parts, lists that are late, classes of refusals.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use aws_sdk_ecs::Client;
use forebay_coordinator::fleet::{
    command::WorkerCommand,
    ecs::Ecs,
    engine::{Call, Class, Engine, Sighting, Started, State, Tag},
};
use forebay_jobs::{id::MemberId, spec::parse};
use tempfile::TempDir;

use crate::double::{self, Faults, client};

pub const EFS: &str = "fs-0123456789abcdef0";

pub struct Fixture {
    pub server: double::Ecs,
    dir: TempDir,
    tag: Tag,
}

/// An engine for the run `r`, with these keys of `[ecs]`.
pub fn engine(client: Client, tag: &Tag, keys: &str) -> Ecs {
    engine_in(client, tag, "subnet-0123456789abcdef0", keys)
}

/// The same in another subnet.
pub fn engine_in(client: Client, tag: &Tag, subnet: &str, keys: &str) -> Ecs {
    let job = format!(
        "name = 'j'\n[dataset]\nsource = 's3://b'\n[command]\nargv = ['x']\n[workers]\nfleet = 'ecs'\n[ecs]\n\
         cluster = 'c'\nimage = 'registry/forebay:1'\nsubnets = ['{subnet}']\n{keys}\n"
    );
    let job = parse::job_file(&job, Path::new("/"), &[]).unwrap();
    let command = WorkerCommand {
        program: "forebay".into(),
        volume: "/somewhere/else".into(),
        run: "r".parse().unwrap(),
        slots: 2,
        pretend: false,
    };
    Ecs::over(client, "us-east-1".to_owned(), job.ecs.as_ref().unwrap(), &job.workers, command, tag.clone()).unwrap()
}

impl Fixture {
    /// A server whose tasks run a shell script.
    async fn new(script: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let efs = dir.path().join("efs");
        fs::create_dir(&efs).unwrap();
        let server = double::Ecs::start(&program, &[(EFS, &efs)]).await;
        Self { server, dir, tag: Tag::of("v", &"r".parse().unwrap()) }
    }

    fn engine(&self, keys: &str) -> Ecs {
        let efs = format!("efs = {{ file_system = '{EFS}' }}\n{keys}");
        engine(client(&self.server.endpoint()), &self.tag, &efs)
    }

    fn call(&self, nonce: u32, count: u32, again: bool) -> Call {
        let token = self.tag.token(&format!("{}-1-{nonce:08x}", self.tag.as_str())).unwrap();
        Call { token, count, again }
    }

    fn efs(&self) -> std::path::PathBuf {
        self.dir.path().join("efs")
    }
}

async fn until(engine: &Ecs, known: &[MemberId], holds: impl Fn(&[Sighting]) -> bool) -> Vec<Sighting> {
    for _ in 0..600 {
        let listed = engine.list(known).await.unwrap();
        if holds(&listed) {
            return listed;
        }
        // Nothing tells when a list shows something else.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("in vain: {:?}", engine.list(known).await);
}

fn all(state: &State, count: usize) -> impl Fn(&[Sighting]) -> bool {
    move |listed| listed.len() == count && listed.iter().all(|sighting| sighting.state == *state)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_starts_nothing_twice_whether_or_not_its_answer_came() {
    let fixture = Fixture::new("exec sleep 60").await;
    let engine = fixture.engine("");
    let first = engine.start(&fixture.call(1, 3, false)).await.unwrap();
    assert_eq!((first.members.len(), &first.refused), (3, &None));
    assert_eq!(engine.start(&fixture.call(1, 3, true)).await.unwrap(), first);
    fixture.server.set_faults(Faults { lose_answers: 1, ..Faults::default() });
    let lost = engine.start(&fixture.call(2, 2, false)).await.unwrap_err();
    assert_eq!(lost.class, Class::Unknown);
    let second = engine.start(&fixture.call(2, 2, true)).await.unwrap();
    assert_eq!(second.members.len(), 2);
    assert_eq!(fixture.server.tasks().len(), 5);
    // What a later version of the same job would ask for is not the same, and still is not started twice.
    let other = fixture.engine("vcpus = 2");
    assert_eq!(other.start(&fixture.call(2, 2, true)).await.unwrap().members, second.members);
    assert_eq!(fixture.server.tasks().len(), 5);
    assert_eq!(fixture.server.done("RegisterTaskDefinition").len(), 2, "one for each size");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_tells_all_members_of_the_run_by_pages_and_what_it_knew_of_those_that_ended() {
    let fixture = Fixture::new("exec sleep 60").await;
    let engine = fixture.engine("");
    let mut members = Vec::new();
    for nonce in 0..4 {
        members.extend(engine.start(&fixture.call(nonce, 10, false)).await.unwrap().members);
    }
    // Another run's, of which it hears nothing.
    let other = Tag::of("v", &"s".parse().unwrap());
    let token = other.token(&format!("{}-1-00000001", other.as_str())).unwrap();
    let theirs = super::engine::engine(
        client(&fixture.server.endpoint()),
        &other,
        &format!("efs = {{ file_system = '{EFS}' }}"),
    );
    theirs.start(&Call { token, count: 1, again: false }).await.unwrap();
    let listed = until(&engine, &[], all(&State::Running, 40)).await;
    let told: Vec<_> = listed.iter().map(|sighting| sighting.member.clone()).collect();
    members.sort();
    assert_eq!(told, members);
    assert!(listed.iter().all(|sighting| fixture.tag.token(sighting.token.as_str()) == Some(sighting.token.clone())));
    engine.stop(&members[..2]).await.unwrap();
    engine.stop(&members[..2]).await.unwrap();
    engine.stop(&["ecs-0000000000000000000000000000ffff".parse().unwrap()]).await.unwrap();
    let ended = |sighting: &Sighting| matches!(sighting.state, State::Ended { .. });
    let listed = until(&engine, &members, |all| all.iter().filter(|s| ended(s)).count() == 2).await;
    assert_eq!(listed.len(), 40);
    let State::Ended { why } = &listed[0].state else { panic!("{listed:?}") };
    assert_eq!(why, "exit code 143: forebay does not need it any more");
    assert_eq!(engine.list(&[]).await.unwrap().len(), 38, "of those that it does not know it is told what runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_hundred_are_described_in_calls_of_a_hundred() {
    let fixture = Fixture::new("exec sleep 60").await;
    let engine = fixture.engine("");
    let known: Vec<_> = (0..250).map(|n| format!("ecs-{n:032x}").parse().unwrap()).collect();
    assert_eq!(engine.list(&known).await.unwrap(), [], "they are missing, which is no error");
    let described = fixture.server.done("DescribeTasks");
    let sizes: Vec<_> = described.iter().map(|logged| logged.body["tasks"].as_array().unwrap().len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_their_classes_and_parts_are_no_errors() {
    let fixture = Fixture::new("exec sleep 60").await;
    let engine = fixture.engine("");
    fixture.server.set_faults(Faults { throttle: 1, no_capacity: 3, ..Faults::default() });
    assert_eq!(engine.start(&fixture.call(1, 5, false)).await.unwrap_err().class, Class::Throttled);
    let Started { members, refused } = engine.start(&fixture.call(2, 5, false)).await.unwrap();
    assert_eq!((members.len(), refused.map(|error| error.class)), (2, Some(Class::Capacity)));
    assert_eq!(engine.start(&fixture.call(3, 11, false)).await.unwrap_err().class, Class::Permanent);
    drop(fixture.server);
    assert_eq!(engine.list(&[]).await.unwrap_err().class, Class::Unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_started_may_be_listed_late() {
    let fixture = Fixture::new("exec sleep 60").await;
    fixture.server.set_faults(Faults { hidden_for: Duration::from_millis(400), ..Faults::default() });
    let engine = fixture.engine("");
    let members = engine.start(&fixture.call(1, 2, false)).await.unwrap().members;
    assert_eq!(engine.list(&members).await.unwrap(), []);
    until(&engine, &[], all(&State::Running, 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_what_its_worker_needs_and_may_write_nowhere_else() {
    let script = "cd /mnt/forebay/deep || exit 9\necho \"$@\" > arguments; env > environment; echo x > /tmp/x || exit 8\n\
                  if echo x 2>/dev/null > /usr/x; then exit 7; fi; exit 3";
    let fixture = Fixture::new(script).await;
    fs::create_dir_all(fixture.efs().join("root/deep")).unwrap();
    let keys = "directory = 'deep'\nlog_group = '/forebay'\nexecution_role = 'arn:aws:iam::123456789012:role/x'\n\
                tags = { team = 'a' }\nsecurity_groups = ['sg-0123456789abcdef0']\n\
                capacity = [{ provider = 'FARGATE_SPOT', weight = 3 }, { provider = 'FARGATE', base = 1 }]";
    let efs = format!("efs = {{ file_system = '{EFS}', root_directory = '/root' }}\n{keys}");
    let engine = engine(client(&fixture.server.endpoint()), &fixture.tag, &efs);
    let members = engine.start(&fixture.call(1, 1, false)).await.unwrap().members;
    let ended = |listed: &[Sighting]| matches!(listed, [Sighting { state: State::Ended { .. }, .. }]);
    let listed = until(&engine, &members, ended).await;
    assert_eq!(listed[0].state, State::Ended { why: "exit code 3: Essential container in task exited".to_owned() });
    let id = fixture.server.tasks()[0].id.clone();
    let more = engine.explain(&members[0]).await.unwrap();
    assert_eq!(more, format!("its log in /forebay is forebay/worker/{id}"));
    let written = |name: &str| fs::read_to_string(fixture.efs().join("root/deep").join(name)).unwrap();
    assert_eq!(written("arguments").trim(), "worker --volume /mnt/forebay/deep --run r --slots 2");
    let environment = written("environment");
    assert!(environment.contains("TMPDIR=/tmp") && !environment.contains("AWS_"), "{environment}");
    let run = &fixture.server.done("RunTask")[0].body;
    assert_eq!(run["tags"][2]["key"], "team");
    assert_eq!(run["capacityProviderStrategy"][0]["capacityProvider"], "FARGATE_SPOT");
    let definition = &fixture.server.done("RegisterTaskDefinition")[0].body;
    let container = &definition["containerDefinitions"][0];
    assert_eq!((&container["stopTimeout"], &container["readonlyRootFilesystem"]), (&120.into(), &true.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ends_of_tasks_are_told_apart() {
    let fixture = Fixture::new("exec sleep 60").await;
    let engine = fixture.engine("");
    let members = engine.start(&fixture.call(1, 2, false)).await.unwrap().members;
    until(&engine, &members, all(&State::Running, 2)).await;
    let tasks = fixture.server.tasks();
    fixture.server.interrupt(&tasks[0].id);
    fixture.server.run_out_of_memory(&tasks[1].id);
    fixture.server.set_faults(Faults { bad_images: 1, ..Faults::default() });
    let mut members = [members, engine.start(&fixture.call(2, 1, false)).await.unwrap().members].concat();
    members.sort();
    let over = |listed: &[Sighting]| {
        listed.iter().filter(|s| matches!(s.state, State::Ended { .. } | State::Evicted { .. })).count() == 3
    };
    let listed = until(&engine, &members, over).await;
    let [State::Evicted { why: spot }, State::Ended { why: memory }, State::Ended { why: image }] =
        [&listed[0].state, &listed[1].state, &listed[2].state]
    else {
        panic!("{listed:?}")
    };
    assert_eq!(spot, "Spot took its capacity back: Your Spot Task was interrupted.");
    assert!(memory.starts_with("it ran out of memory: OutOfMemoryError"), "{memory}");
    assert!(image.starts_with("its image cannot be pulled: CannotPullContainerError"), "{image}");
}
