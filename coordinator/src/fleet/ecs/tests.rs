//! The engine over the double of ECS that whole runs are tried with.

#![allow(clippy::unwrap_used, reason = "clippy does not see that the double is a test")]

#[allow(dead_code, reason = "this uses a part of it")]
#[path = "../../../../tests/ecs/double/mod.rs"]
mod double;

use std::{fs, os::unix::fs::PermissionsExt};

use forebay_jobs::id::Epoch;
use forebay_jobs::spec::ecs::{Architecture, Capacity, LaunchType as Launch, Storage};

use super::*;
use crate::fleet::{
    conformance::{a_fleet_keeps_its_promises, keeps_its_promises},
    managed::Managed,
};

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_what_any_engine_has_to_keep() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    fs::write(&program, "#!/bin/sh\nexec sleep 600\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let server = double::Ecs::start(&program, &[]).await;
    let spec = EcsSpec {
        cluster: "c".to_owned(),
        image: "registry/forebay:1".to_owned(),
        capacity: Capacity::LaunchType(Launch::Ec2),
        platform_version: None,
        architecture: Architecture::Arm64,
        cpu: 1024,
        memory: 512,
        network: None,
        execution_role: None,
        task_role: None,
        storage: Storage::HostPath(dir.path().display().to_string()),
        directory: String::new(),
        log_group: None,
        tags: Default::default(),
        endpoint: None,
        region: None,
    };
    let workers = "name = 'j'\n[dataset]\nsource = 's3://b'\n[command]\nargv = ['x']";
    let workers = forebay_jobs::spec::parse::job_file(workers, dir.path(), &[]).unwrap().workers;
    let run: RunId = "r".parse().unwrap();
    let tag = Tag::of("v", &run);
    let command = WorkerCommand { program, volume: dir.path().to_owned(), run, slots: 1, pretend: false };
    let client = double::client(&server.endpoint());
    let engine = Ecs::over(client, "us-east-1".to_owned(), &spec, &workers, command, tag.clone()).unwrap();
    keeps_its_promises(&engine, &tag).await;
    assert_eq!(server.tasks().len(), 4);
    let mut fleet = Managed::open(engine, tag, Epoch(2), &dir.path().join("2")).unwrap();
    fs::create_dir(dir.path().join("2")).unwrap();
    let here = || server.tasks().into_iter().filter(|task| task.status != "STOPPED").collect::<Vec<_>>();
    a_fleet_keeps_its_promises(&mut fleet, &|| here().len(), &|| server.run_out_of_memory(&here()[0].id)).await;
}
