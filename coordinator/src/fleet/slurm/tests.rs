use forebay_jobs::id::Epoch;

use super::*;
use crate::fleet::{
    conformance::{a_fleet_keeps_its_promises, keeps_its_promises},
    managed::Managed,
};

/// Whose tasks sleep, in a directory that is there.
fn real(dir: &std::path::Path, rest: &str) -> Slurm {
    let program = dir.join("program");
    std::fs::write(&program, "#!/bin/sh\nexec sleep 600\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut slurm = slurm(rest);
    (slurm.command.program, slurm.command.volume, slurm.logs) = (program, dir.to_owned(), dir.to_owned());
    slurm.command.slots = 1;
    slurm
}

#[tokio::test]
#[ignore = "needs a Slurm: tests/slurm/cluster.sh has one; .ci/run has it"]
async fn slurm_keeps_an_engines_promises() {
    if env::var_os("SLURM_CONF").is_none() {
        return println!("skipped: there is no Slurm");
    }
    let dir = tempfile::tempdir().unwrap();
    let slurm = real(dir.path(), "");
    keeps_its_promises(&slurm, &slurm.tag).await;
    let mut fleet = Managed::open(real(dir.path(), ""), slurm.tag.clone(), Epoch(2), &dir.path().join("2")).unwrap();
    std::fs::create_dir(dir.path().join("2")).unwrap();
    let jobs = || {
        let said = std::process::Command::new("squeue").args(["-h", "-r", "-t", "PD,R,CG", "-o", "%F_%K"]).output();
        String::from_utf8(said.unwrap().stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let kill = || assert!(std::process::Command::new("scancel").arg(&jobs()[0]).status().unwrap().success());
    a_fleet_keeps_its_promises(&mut fleet, &|| jobs().len(), &kill).await;
    let wrong = real(dir.path(), "[slurm]\npartition = 'nowhere'\n");
    let error = wrong.start(&call(&wrong)).await.unwrap_err();
    assert!(error.class == Class::Permanent && error.why.contains("sinfo -s"), "{error}");
}

fn slurm(rest: &str) -> Slurm {
    let text = format!(
        "name = 'n'\n[dataset]\nsource = 'file:///x'\n[command]\nargv = ['true']\n[workers]\nfleet = 'slurm'\n{rest}"
    );
    let job = forebay_jobs::spec::parse::job_file(&text, std::path::Path::new("/"), &[]).unwrap();
    let run: forebay_jobs::id::RunId = "a.run".parse().unwrap();
    let tag = Tag::of("v", &run);
    let command =
        WorkerCommand { program: "/opt/it's/forebay".into(), volume: "/mnt/v".into(), run, slots: 2, pretend: false };
    Slurm::new(command, tag, job.workers, job.slurm.unwrap(), "/mnt/v/runs/a.run/logs".into())
}

fn call(slurm: &Slurm) -> Call {
    Call { token: slurm.tag.fresh(Epoch(3), 7), count: 20, again: false }
}

#[test]
fn what_the_job_file_asks_for_is_what_sbatch_gets() {
    let slurm = slurm(
        "cpus = 4\nmemory = '3GiB'\ngpus = 2\ntime = '61s'\n[slurm]\npartition = 'p'\naccount = 'a'\nqos = 'q'\n\
         gres = 'nvme:1'\noptions = ['--nice=10']\nsetup = ['module load x']\n",
    );
    let options = slurm.options(&call(&slurm));
    for option in ["--array=0-19", "--cpus-per-task=4", "--mem=3072M", "--time=2", "--partition=p", "--account=a"] {
        assert!(options.iter().any(|given| given == option), "{option}: {options:?}");
    }
    assert_eq!(options[options.len() - 3..], ["--qos=q", "--gres=gpu:2,nvme:1", "--nice=10"]);
    let script = slurm.script();
    let lines: Vec<_> = script.lines().collect();
    assert_eq!(lines[..2], ["#!/bin/bash", "module load x"]);
    assert!(lines[2].contains("+ 120))"), "{script}");
    let last = r"exec '/opt/it'\''s/forebay' 'worker' '--volume' '/mnt/v' '--run' 'a.run' '--slots' '2'";
    assert_eq!(lines[3..], [last]);
}

#[test]
fn only_jobs_of_the_run_are_seen_whatever_else_the_user_has() {
    let slurm = slurm("");
    let token = call(&slurm).token;
    let seen = |job: &str, task: &str, state: &str, name: &str, reason: &str| {
        sighting(&slurm.tag, &format!("{job:<24}{task:<24}{:<12}{state:<24}{name:<200}{reason:<100}", 2))
    };
    let name = format!("a.run.{token}");
    let (sighted, reason) = seen("17", "3", "PENDING", &name, "PartitionConfig").unwrap();
    let member: MemberId = "slurm-17_3".parse().unwrap();
    assert_eq!(sighted, Sighting { member, token: token.clone(), state: State::Queued, life: 2 });
    assert_eq!(reason.as_deref(), Some("PartitionConfig"));
    let state = |name| seen("17", "3", name, &format!("a.run.{token}"), "None").unwrap().0.state;
    assert_eq!(state("RUNNING"), State::Running);
    assert_eq!(state("CONFIGURING"), State::Queued);
    assert_eq!(state("NODE_FAIL"), State::Ended { why: "Slurm says NODE_FAIL, None".into() });
    assert_eq!(state("SOMETHING_NEW"), State::Running);
    let other = Tag::of("another volume", &"a.run".parse().unwrap()).fresh(Epoch(1), 7);
    for (job, task, name) in [
        ("17", "3", "a script.sh".to_owned()),
        ("17", "3", format!("a.run.{other}")),
        ("17", "N/A", name.clone()),
        ("17", "3", slurm.tag.as_str().to_owned()),
    ] {
        assert!(seen(job, task, "RUNNING", &name, "None").is_none(), "{job} {task} {name}");
    }
    assert!(sighting(&slurm.tag, "").is_none());
}

#[test]
fn refusals_are_told_apart_and_say_what_to_do() {
    for (class, words) in [
        (Class::Permanent, "Batch job submission failed: Invalid partition name specified"),
        (Class::Permanent, "sbatch: unrecognized option '--bogus'"),
        (Class::Permanent, "Requested node configuration is not available"),
        (Class::Unknown, "Unable to contact slurm controller (connect failure)"),
        (Class::Unknown, "Socket timed out on send/recv operation"),
        (Class::Throttled, "Batch job submission failed: Resource temporarily unavailable"),
        (Class::Capacity, "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"),
    ] {
        assert_eq!(refusal(words).class, class, "{words}");
    }
    assert!(refusal("Invalid partition name specified").why.contains("sinfo -s"));
}

#[tokio::test]
async fn a_host_without_slurm_says_so() {
    let error = run("no-such-command", command("/nowhere/no-such-command"), "").await.unwrap_err();
    assert_eq!(error.class, Class::Permanent);
    assert!(error.why.contains("no `no-such-command` here"), "{error}");
}
