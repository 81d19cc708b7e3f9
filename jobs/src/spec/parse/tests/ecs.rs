use super::*;
use crate::spec::ecs::{Architecture, Capacity, EcsSpec, LaunchType, Provider, Storage};

const IMAGE: &str = "image = \"registry/forebay:1\"\n";
const NET: &str = "subnets = [\"subnet-0123456789abcdef0\"]\n";
const EFS: &str = "efs = { file_system = \"fs-0123456789abcdef0\" }\n";

fn text(workers: &str, ecs: &str) -> String {
    format!("{HEAD}[command]\nargv = [\"x\"]\n[workers]\nfleet = \"ecs\"\n{workers}\n[ecs]\n{ecs}")
}

fn parsed(workers: &str, ecs: &str) -> EcsSpec {
    job_file(&text(workers, ecs), Path::new("/base"), &[]).unwrap().ecs.unwrap()
}

#[test]
fn the_shortest_table_has_every_default_and_is_kept_as_it_was_read() {
    let ecs = parsed("", &format!("{IMAGE}{NET}{EFS}"));
    assert_eq!((&*ecs.cluster, &ecs.capacity), ("default", &Capacity::LaunchType(LaunchType::Fargate)));
    assert_eq!((ecs.platform_version.as_deref(), ecs.architecture), (Some("1.4.0"), Architecture::X86_64));
    assert_eq!((ecs.cpu, ecs.memory, &*ecs.directory), (1024, 2048, ""));
    let Storage::Efs { root, tls: true, iam: false, access_point: None, .. } = &ecs.storage else { panic!("{ecs:?}") };
    assert_eq!(root, "/");
    let job = job_file(&text("", &format!("{IMAGE}{NET}{EFS}")), Path::new("/base"), &[]).unwrap();
    let kept: JobSpec = serde_json::from_str(&serde_json::to_string(&job).unwrap()).unwrap();
    assert_eq!(kept, job);
}

#[test]
fn a_task_is_the_smallest_that_holds_its_worker() {
    let size = |workers: &str, rest: &str| {
        let ecs = parsed(workers, &format!("{IMAGE}{NET}{EFS}{rest}"));
        (ecs.cpu, ecs.memory)
    };
    assert_eq!(size("cpus = 4", ""), (4096, 8192));
    assert_eq!(size("cpus = 4\nmemory = \"8GiB\"", ""), (4096, 9216), "a worker is more than its slots");
    assert_eq!(size("memory = \"256MiB\"", "vcpus = 0.25"), (256, 512));
    assert_eq!(size("", "vcpus = 0.5\nmemory = \"3GiB\""), (512, 3072));
    let ec2 =
        parsed("cpus = 3\nmemory = \"700MiB\"", &format!("{IMAGE}launch_type = \"EC2\"\nhost_path = \"/mnt/efs\"\n"));
    assert_eq!((ec2.cpu, ec2.memory, ec2.platform_version, ec2.network), (3072, 956, None, None));
}

#[test]
fn a_coordinator_has_a_size_of_fargates_and_its_own_role() {
    let job = |ecs: &str, coordinator: &str| {
        job_file(&format!("{}\n[coordinator]\n{coordinator}", text("", ecs)), Path::new("/base"), &[])
    };
    let fargate = format!("{IMAGE}{NET}{EFS}");
    let instances = format!("{IMAGE}launch_type = \"EC2\"\nhost_path = \"/mnt/efs\"\n");
    let size = |ecs: &str, keys: &str| {
        let job = job(ecs, keys).unwrap();
        let coordinator = job.coordinator.unwrap();
        job.ecs.unwrap().smallest(coordinator.cpus, coordinator.memory).unwrap()
    };
    assert_eq!(size(&fargate, ""), (1024, 2048));
    assert_eq!(size(&fargate, "memory = \"2500MiB\""), (1024, 3072));
    assert_eq!(size(&fargate, "memory = \"12GiB\""), (2048, 12288), "more memory takes more vCPUs");
    assert_eq!(size(&fargate, "cpus = 3"), (4096, 8192));
    assert_eq!(size(&instances, "cpus = 3\nmemory = \"700MiB\""), (3072, 700));
    assert_eq!(size(&instances, ""), (1024, 2048));
    let own = job(&fargate, "task_role = \"arn:aws:iam::1:role/c\"\nsecurity_groups = [\"sg-0123456789abcdef0\"]");
    let own = own.unwrap().coordinator.unwrap();
    assert_eq!((own.task_role.as_deref(), own.security_groups.len()), (Some("arn:aws:iam::1:role/c"), 1));
    for (ecs, keys, message) in [
        (&fargate, "cpus = 17", "Fargate has no task of this size"),
        (&fargate, "memory = \"121GiB\"", "Fargate has no task of this size"),
        (&fargate, "time = \"1h\"", "time means nothing to the fleet `ecs`"),
        (&fargate, "partition = \"p\"", "partition means nothing to the fleet `ecs`"),
        (&fargate, "service_account = \"a\"", "service_account means nothing to the fleet `ecs`"),
        (&fargate, "task_role = \"me\"", "`me` is no role's ARN"),
        (&fargate, "security_groups = [\"me\"]", "`me` is none of the ids that begin with sg-"),
        (&instances, "security_groups = [\"sg-0123456789abcdef0\"]", "without [ecs] subnets this has no effect"),
    ] {
        assert_eq!(job(ecs, keys).unwrap_err().message, message, "{keys}");
    }
}

#[test]
fn capacity_is_a_launch_type_or_shares_of_providers() {
    let shares = "capacity = [{ provider = \"FARGATE_SPOT\", weight = 3 }, { provider = \"FARGATE\", base = 2 }]\n";
    let ecs = parsed("", &format!("{IMAGE}{NET}{EFS}{shares}"));
    let provider = |name: &str, weight, base| Provider { name: name.to_owned(), weight, base };
    assert_eq!(ecs.capacity, Capacity::Providers(vec![provider("FARGATE_SPOT", 3, 0), provider("FARGATE", 1, 2)]));
    assert!(ecs.is_fargate());
}

#[test]
fn what_ecs_would_refuse_is_refused_here() {
    let point = "access_point = \"fsap-0123456789abcdef0\"";
    let efs = |more: &str| format!("{IMAGE}{NET}efs = {{ file_system = \"fs-0123456789abcdef0\", {more} }}");
    let with = |rest: &str| format!("{IMAGE}{NET}{EFS}{rest}");
    for (workers, ecs, message, place) in [
        ("", format!("{NET}{EFS}"), "the key `image` is missing", "[ecs]"),
        ("", format!("{IMAGE}{EFS}"), "[ecs] has no subnets", ""),
        ("", format!("{IMAGE}{NET}"), "[ecs] has no storage", ""),
        ("", with("host_path = \"/mnt\""), "[ecs] has two kinds of storage", "\"/mnt\""),
        ("", with("launch_type = \"FARGATE_SPOT\""), "there is no launch type `FARGATE_SPOT`", "\"FARGATE_SPOT\""),
        ("", with("launch_type = \"FARGATE\"\ncapacity = []"), "[ecs] has both launch_type and capacity", "[]"),
        ("", with("vcpus = 3"), "Fargate has no tasks with 3 vCPUs", "3"),
        ("", with("vcpus = 0.25\nmemory = \"4GiB\""), "Fargate has no tasks of 4096 MiB", "\"4GiB\""),
        ("cpus = 2", with("vcpus = 1"), "a task has 1 vCPUs, and [workers] cpus asks for 2", "1"),
        (
            "memory = \"2GiB\"",
            with("memory = \"2GiB\""),
            "a task of 2048 MiB cannot hold [workers] memory and the 256 MiB of a worker",
            "\"2GiB\"",
        ),
        ("gpus = 1", with(""), "Fargate has no GPUs, and [workers] gpus asks for some", ""),
        ("time = \"1h\"", with(""), "a task of ECS has no end that is known before", "\"1h\""),
        ("", with("log_group = \"/forebay\""), "who may write the log is not said", "\"/forebay\""),
        ("", with("tags = { \"AWS:x\" = \"y\" }"), "`AWS:x` begins as others' tags do", "\"y\""),
        ("", with("directory = \"../other\""), "`../other` is no place below the storage's root", "\"../other\""),
        ("", efs(&format!("{point}, root_directory = \"/x\"")), "the access point says what is its root", "\"/x\""),
        (
            "",
            efs(&format!("{point}, transit_encryption = false")),
            "an access point and IAM need encryption in transit",
            "false",
        ),
        ("", efs("iam = true"), "there is no role that IAM could ask for", "true"),
        (
            "",
            format!("{IMAGE}subnets = [\"vpc-0123456789\"]\n{EFS}"),
            "`vpc-0123456789` is none of the ids that begin with subnet-",
            "\"vpc-0123456789\"",
        ),
        ("", format!("{IMAGE}{NET}host_path = \"/mnt\""), "Fargate's hosts have no directories of yours", "\"/mnt\""),
        (
            "",
            format!("{IMAGE}{EFS}launch_type = \"EC2\"\npublic_ip = true"),
            "without subnets this has no effect",
            "true",
        ),
    ] {
        assert_eq!(problem(&text(workers, &ecs)), (message.to_owned(), place.to_owned()), "{workers} {ecs}");
    }
    let missing = text("", "").replace("[ecs]\n", "");
    assert_eq!(problem(&missing).0, "the fleet is ecs, and the table [ecs] is missing");
    let elsewhere = text("", &with("")).replace("fleet = \"ecs\"", "");
    assert_eq!(problem(&elsewhere).0, "[ecs] has no effect with another fleet");
}
