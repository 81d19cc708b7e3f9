use std::{collections::BTreeMap, path::Path, time::Duration};

use super::*;
use crate::spec::{ColumnsSpec, Mapper, OutputFormat, Program, SplitBy, SplitSize, SplitSpec, table::TableSpec};

mod ecs;
mod kubernetes;

const HEAD: &str = "name = \"j\"\n[dataset]\nsource = \"s3://b/flights\"\n";

fn parse(rest: &str) -> Result<JobSpec, SpecError> {
    job_file(&format!("{HEAD}{rest}"), Path::new("/base"), &[])
}

/// The message, and the text that it points at.
fn problem(text: &str) -> (String, String) {
    let error = job_file(text, Path::new("/base"), &[]).unwrap_err();
    (error.message, error.span.map(|span| text[span].to_owned()).unwrap_or_default())
}

#[test]
fn the_shortest_jobs_have_every_default() {
    let job = parse("[sql]\nquery = \"select 1\"").unwrap();
    assert_eq!((&*job.dataset.name, &*job.dataset.source), ("flights", "s3://b/flights/"));
    assert_eq!(job.split, SplitSpec { by: SplitBy::Whole, size: SplitSize::Each });
    assert_eq!((job.retry.attempts, job.retry.max_failures, job.retry.timeout), (3, 0, None));
    assert_eq!((job.retry.backoff_first, job.retry.backoff_last), (Duration::from_secs(1), Duration::from_secs(60)));
    assert_eq!((job.workers.count, job.workers.slots, job.workers.readers, job.workers.time), (1, None, None, None));
    assert_eq!((job.workers.ramp, job.workers.patience), (Duration::ZERO, Duration::from_secs(3600)));
    assert!(job.retry.speculate);
    assert_eq!((job.output.format, &job.output.to), (OutputFormat::Parquet, &None));
    let Work::Sql(sql) = job.work else { panic!("{:?}", job.work) };
    assert_eq!(sql.tables, BTreeMap::from([("flights".to_owned(), TableSpec::of_glob("**"))]));
    let command = parse("[command]\nargv = [\"x\"]").unwrap();
    assert_eq!(command.split, SplitSpec { by: SplitBy::File, size: SplitSize::Each });
    let mapreduce = parse("[mapreduce]\nmap = \"word-count\"").unwrap();
    assert_eq!(mapreduce.split, SplitSpec { by: SplitBy::Bytes, size: SplitSize::Bytes(128 << 20) });
}

#[test]
fn errors_point_at_what_is_wrong() {
    let command = "[command]\nargv = [\"x\"]\n";
    let slurm = "[workers]\nfleet = \"slurm\"\n[slurm]\n";
    let gang = "[command]\nargv = [\"x\"]\ngang = true\n";
    let sql = "[sql]\nquery = \"select 1\"\n";
    for (rest, message, place) in [
        (format!("{sql}querry = 1"), "unknown key `querry`", "querry"),
        (format!("{sql}[command]\nargv = [\"x\"]"), "the job has two kinds of work", ""),
        (format!("include = [\"a{{\"]\n{sql}"), "`a{` is no glob", "\"a{\""),
        (format!("version = \"newest\"\n{sql}"), "`newest` is no snapshot id", "\"newest\""),
        (
            format!("early_start = true\n{sql}"),
            "no task of this job can start before all of its dataset is staged",
            "true",
        ),
        (format!("endpoint = \"localhost:9000\"\n{sql}"), "`localhost:9000` is no endpoint", "\"localhost:9000\""),
        (format!("{command}[split]\nsize = \"4XB\""), "`4XB` is no size: write 64KiB, 128MiB, 1GB", "\"4XB\""),
        (
            format!("{command}[split]\nby = \"whole\"\ncount = 3"),
            "the whole dataset is one split, of no other size",
            "3",
        ),
        (format!("{command}[split]\nsize = \"1B\"\ncount = 3"), "[split] has both size and count", "3"),
        (format!("{command}[split]\nby = \"word\""), "`word` is no way to split", "\"word\""),
        (format!("columns = \"some\"\n{sql}"), "`some` is no choice of columns", "\"some\""),
        (format!("columns = []\n{sql}"), "no column is named", "[]"),
        (format!("columns = [\"a\", \"\"]\n{sql}"), "a column has no name", "\"\""),
        (format!("columns = [\"a\", \"b\", \"a\"]\n{sql}"), "the column `a` is named twice", "\"a\""),
        (
            format!("columns = \"needed\"\nversion = \"0a\"\n{sql}"),
            "columns has no effect beside version: a snapshot is read as it is",
            "\"needed\"",
        ),
        (format!("columns = [\"a\"]\n{command}"), "only a query reads some columns of an object", "[\"a\"]"),
        (
            "columns = \"needed\"\n[mapreduce]\nmap = \"column-stats\"".into(),
            "only a query reads some columns of an object",
            "\"needed\"",
        ),
        (format!("{sql}[sweep]\nx = [1]"), "`sweep` is not supported by this version", "sweep"),
        (
            format!("{gang}[workers]\nreaders = 2"),
            "a gang runs all at once and ends together, so that readers means nothing",
            "2",
        ),
        (
            format!("{gang}[workers]\nramp = \"1s\""),
            "a gang runs all at once and ends together, so that ramp means nothing",
            "\"1s\"",
        ),
        (
            format!("{gang}[retry]\nmax_failures = 1"),
            "a gang runs all at once and ends together, so that max_failures means nothing",
            "1",
        ),
        (
            format!("{gang}[retry]\nspeculate = true"),
            "a gang runs all at once and ends together, so that speculate means nothing",
            "true",
        ),
        (
            format!("{command}[retry]\nresplit = true"),
            "what a task of this job has not read cannot become other tasks",
            "true",
        ),
        (
            format!("early_start = true\n{gang}"),
            "no task of this job can start before all of its dataset is staged",
            "true",
        ),
        (format!("{command}[workers]\ncpus = 0"), "0 is out of range", "0"),
        (format!("{command}[workers]\nmemory = \"1MiB\""), "a slot would have less than 16 MiB of memory", "\"1MiB\""),
        (format!("{command}[workers]\ngpus = 3\nslots = 2"), "2 slots cannot have the same number of 3 gpus each", "3"),
        (format!("{command}[workers]\nfleet = \"lambda\""), "there is no fleet `lambda`", "\"lambda\""),
        (
            format!("{command}[coordinator]\ncpus = 2"),
            "this fleet starts no coordinator: it is where `forebay run` is",
            "[coordinator]",
        ),
        (format!("{command}{slurm}[coordinator]\ncpus = 0"), "0 is out of range", "0"),
        (
            format!("{command}{slurm}[coordinator]\ntask_role = \"arn:aws:iam::1:role/c\""),
            "task_role means nothing to the fleet `slurm`",
            "\"arn:aws:iam::1:role/c\"",
        ),
        (
            format!("{command}{slurm}[coordinator]\nmemory = \"1MiB\""),
            "a coordinator needs more memory than this",
            "\"1MiB\"",
        ),
        (
            format!("{command}{slurm}[coordinator]\noptions = [\"--mem=5G\"]"),
            "`--mem` is not an option to give here",
            "\"--mem=5G\"",
        ),
        (
            format!("{command}{slurm}options = [\"--output=x\"]"),
            "`--output` is not an option to give here",
            "\"--output=x\"",
        ),
        (format!("{command}[slurm]\nqos = \"a\""), "[slurm] means nothing to this fleet", "[slurm]"),
        (format!("{command}{slurm}partition = \"a b\""), "`a b` is no name that Slurm knows", "\"a b\""),
        (format!("{command}{slurm}account = \"-x\""), "`-x` is no name that Slurm knows", "\"-x\""),
        (format!("{command}{slurm}options = [\"-p x\"]"), "`-p x` is no long option of sbatch", "\"-p x\""),
        (format!("{command}{slurm}options = [\"--time=5\"]"), "`--time` is not an option to give here", "\"--time=5\""),
        (format!("{command}{slurm}setup = [\"a\\nb\"]"), "this is more than one line", "\"a\\nb\""),
        (format!("{command}{slurm}program = \"forebay\""), "nodes cannot find the program by this path", "\"forebay\""),
        (format!("{command}[workers]\ncount = 0"), "0 is out of range", "0"),
        (format!("{command}[workers]\ncount = -1"), "-1 is out of range", "-1"),
        (format!("{command}[workers]\nreaders = 0"), "0 is out of range", "0"),
        (format!("{command}[workers]\nramp = \"soon\""), "`soon` does not begin with a number", "\"soon\""),
        (
            format!("{command}[workers]\ntime = \"19s\""),
            "a worker needs more time than this to end what it has begun",
            "\"19s\"",
        ),
        (format!("{command}[retry]\ntimeout = \"0s\""), "a time-out of nothing ends every attempt", "\"0s\""),
        (format!("{command}[retry]\nbackoff = \"9s..1s\""), "the first wait is longer than the last", "\"9s..1s\""),
        (format!("{command}env = {{ \"A=B\" = \"1\" }}"), "`A=B` is no name of an environment variable", "\"1\""),
        (format!("{command}env = {{ FOREBAY_RUN_ID = \"1\" }}"), "`FOREBAY_RUN_ID` is forebay's own", "\"1\""),
        (format!("{command}files = [\"gone.py\"]"), "there is no file /base/gone.py", "\"gone.py\""),
        (format!("{command}shell = \"y\""), "[command] has both argv and shell", "\"y\""),
        (
            format!("{command}[output]\nto = \"s3://b/flights\""),
            "the output would be copied into its own source",
            "\"s3://b/flights\"",
        ),
        (
            format!("{command}[output]\nto = \"s3://b/flights/copies\""),
            "the output would be copied into its own source",
            "\"s3://b/flights/copies\"",
        ),
        (
            format!("{command}[output]\nformat = \"csv\""),
            "a program's output is published as the program wrote it",
            "\"csv\"",
        ),
        (format!("{command}[params]\nlr = 1\nLR = 2"), "the parameters `LR` and `lr` differ in case alone", "1"),
        (format!("{sql}tables = {{ A = \"a\", a = \"b\" }}"), "the tables `A` and `a` differ in case alone", "\"b\""),
        (
            "[mapreduce]\nmap = \"word-count\"\n[split]\nby = \"row-groups\"".into(),
            "row groups are no lines: what maps lines cannot read them",
            "\"row-groups\"",
        ),
        (format!("{sql}[split]\nby = \"file\""), "a query is one task, and takes no [split]", ""),
        (format!("{sql}engine = \"spark\""), "there is no engine `spark`", "\"spark\""),
        (
            format!("{sql}engine = \"splits\"\ntables = {{ a = \"a\", b = \"b\" }}"),
            "by splits a query reads one table, and there are 2",
            "\"splits\"",
        ),
        (
            format!("{sql}engine = \"splits\"\n[sql.options]\ndatafusion.execution.target_partitions = 4"),
            "`datafusion.execution.target_partitions` has no effect by splits: one thread reads each",
            "\"splits\"",
        ),
        ("[command]\nargv = []".into(), "the program is missing", "[]"),
        ("[command]\nargv = [\"a\", \"b\\u0000\"]".into(), "the text holds a NUL", "\"b\\u0000\""),
        ("[command]\nargv = [\"p\", \"${params.x}\"]".into(), "there is no parameter `x`", "\"${params.x}\""),
        ("[command]\nshell = \"echo ${params.x\"".into(), "`${params.` is not closed", "\"echo ${params.x\""),
        ("[mapreduce]\nmap = \"word-cont\"".into(), "there is no built-in `word-cont`", "\"word-cont\""),
        ("[mapreduce]\nmap = \"grep (\"".into(), "`(` is no regular expression", "\"grep (\""),
        ("[mapreduce]\nmap = \"grep\"".into(), "grep has no pattern", "\"grep\""),
        ("[mapreduce]\nmap = [\"m\"]".into(), "a map program needs a reduce program", "[\"m\"]"),
        ("[mapreduce]\nmap = \"word-count\"\nreduce = [\"r\"]".into(), "a built-in brings its own reduce", "[\"r\"]"),
        (
            "[mapreduce]\nmap = \"word-count\"\nenv = { A = \"1\" }".into(),
            "a built-in takes neither files nor env",
            "\"1\"",
        ),
        (
            format!("{sql}options = {{ \"datafusion.execution.batch\" = 1 }}"),
            "DataFusion has no option `datafusion.execution.batch`",
            "1",
        ),
        (
            format!("{sql}[sql.options]\ndatafusion.execution.batch_size = \"many\""),
            "`datafusion.execution.batch_size` cannot be `many`",
            "",
        ),
        (format!("{sql}tables.a = {{ include = \"a\", delimeter = \";\" }}"), "unknown key `delimeter`", "delimeter"),
        (format!("{sql}tables.a = {{ format = \"csv\" }}"), "the key `include` is missing", ""),
        (
            format!("{sql}tables.a = 7"),
            "invalid type: integer `7`, expected a glob, or a table such as { include = \"*.csv\", delimiter = \";\" }",
            "7",
        ),
        (format!("{sql}tables.a = {{ include = [] }}"), "a table has at least one glob", "[]"),
        (format!("{sql}tables.a = {{ include = \"a{{\" }}"), "`a{` is no glob", "\"a{\""),
        (
            format!("{sql}tables.a = {{ include = \"a\", format = \"xml\" }}"),
            "`xml` is no format of a table",
            "\"xml\"",
        ),
        (
            format!("{sql}tables.a = {{ include = \"a.csv\", delimiter = \"ab\" }}"),
            "`ab` is not one ASCII character",
            "\"ab\"",
        ),
        (
            format!("{sql}tables.a = {{ include = \"a.parquet\", null = [\"NA\"] }}"),
            "`null` has no effect on a table of parquet",
            "",
        ),
        (
            format!("{sql}tables.a = {{ include = \"a.csv\", columns = [\"x\"] }}"),
            "the header names the columns",
            "\"x\"",
        ),
        (
            format!("{sql}tables.a = {{ include = \"a.csv\", schema = {{ x = \"INTT\" }} }}"),
            "`INTT`, of the column `x`, is no type: Unsupported SQL type INTT",
            "\"INTT\"",
        ),
        (
            format!("on_bad_record = \"ignore\"\n{sql}"),
            "`ignore` is nothing that can be done with a bad record",
            "\"ignore\"",
        ),
        (format!("on_bad_record = \"skip\"\n{command}"), "on_bad_record is for queries alone", "\"skip\""),
        (
            format!("{command}[output]\npartition_by = [\"a\"]"),
            "only a query's output is partitioned by columns",
            "[\"a\"]",
        ),
        (format!("{sql}[output]\npartition_by = []"), "partition_by names no column", "[]"),
        (format!("{sql}[output]\npartition_by = [\"a\", \"a\"]"), "the column `a` is named twice", "\"a\""),
        (
            format!("{sql}[output]\nformat = \"csv\"\nrow_group_size = \"1MiB\""),
            "row groups are of a query's Parquet output",
            "\"1MiB\"",
        ),
        (format!("{sql}[output]\nrow_group_size = \"1KiB\""), "a row group is of 64 KiB to 4 GiB", "\"1KiB\""),
        (String::new(), "the job does nothing: it has no kind of work", "\"j\""),
    ] {
        let (found, at) = problem(&format!("{HEAD}{rest}"));
        assert_eq!(found, message, "{rest}");
        assert!(place.is_empty() || at == place, "{rest}: {at}");
    }
}

#[test]
fn columns_are_all_needed_or_named() {
    let columns = |line: &str| parse(&format!("{line}[sql]\nquery = \"select 1\"")).unwrap().dataset;
    let request = |line: &str| columns(line).stage_request().unwrap().columns;
    assert_eq!(columns("").columns, ColumnsSpec::All);
    assert_eq!(columns("columns = \"all\"\nversion = \"latest\"\n").columns, ColumnsSpec::All);
    assert_eq!(columns("columns = \"needed\"\n").columns, ColumnsSpec::Needed);
    let named = ["a", "b"].into_iter().collect();
    assert_eq!(columns("columns = [\"b\", \"a\"]\n").columns, ColumnsSpec::Only(named));
    assert_eq!((request(""), request("columns = \"needed\"\n")), (None, None));
    assert_eq!(request("columns = [\"b\", \"a\"]\n"), Some(["a", "b"].into_iter().collect()));
    let (message, place) = problem(&format!("{HEAD}columns = 3\n[sql]\nquery = \"select 1\""));
    assert!(message.contains("\"all\", \"needed\", or an array of names") && place == "3", "{message}: {place}");
    // A job that was kept before there were columns.
    let mut kept = serde_json::to_value(parse("[sql]\nquery = \"select 1\"").unwrap()).unwrap();
    kept["dataset"].as_object_mut().unwrap().remove("columns");
    assert_eq!(serde_json::from_value::<JobSpec>(kept).unwrap().dataset.columns, ColumnsSpec::All);
}

#[test]
fn what_is_missing_or_of_another_type_is_said_in_words() {
    assert_eq!(problem("[dataset]\nsource = \"s3://b\"\n").0, "the key `name` is missing");
    assert_eq!(problem("name = \"j\"\n").0, "the table [dataset] is missing");
    assert_eq!(
        problem("name = \"j\"\n[dataset]\nname = \"d\"\n[sql]\nquery = \"select 1\"").0,
        "the key `source` is missing"
    );
    let (message, place) = problem(&format!("{HEAD}[mapreduce]\nmap = 3"));
    assert!(message.contains("the name of a built-in, an array of a program"), "{message}");
    assert_eq!(place, "3");
    let (message, _) = problem(&format!("{HEAD}[command]\nargv = [\"x\"]\n[workers]\ncount = \"2\""));
    assert!(message.ends_with("expected a whole number"), "{message}");
    for source in ["/dir", "file://dir", "s3://", "http://x/y"] {
        let (_, place) =
            problem(&format!("name = \"j\"\n[dataset]\nsource = \"{source}\"\n[sql]\nquery = \"select 1\""));
        assert_eq!(place, format!("\"{source}\""));
    }
}

#[test]
fn a_near_key_is_proposed_and_others_are_listed() {
    let help = |rest: &str| parse(rest).unwrap_err().help.unwrap();
    assert_eq!(help("[command]\nargz = []"), "did you mean `argv`?");
    assert_eq!(help("[command]\nfrobnicate = 1"), "the keys here are argv, shell, gang, files, env");
}

#[test]
fn a_query_s_error_points_at_the_word() {
    assert_eq!(problem(&format!("{HEAD}[sql]\nquery = \"selct 1\"")).1, "selct");
    let text = format!("{HEAD}[sql]\nquery = \"\"\"\nselect 1,\n  ä frm\n  group where\"\"\"\n");
    let (message, place) = problem(&text);
    assert!(!message.contains("Line"), "{message}");
    assert!(!place.is_empty() && place.len() < 10 && message.contains(&place), "{message}: {place}");
    // What the file does not hold word for word is pointed at whole.
    let (message, place) = problem(&format!("{HEAD}[sql]\nquery = \"selct \\u0031\"\n"));
    assert!(message.contains("Line: 1") && place.starts_with('"'), "{message}: {place}");
}

#[test]
fn params_are_filled_in_and_overridden() {
    let text = format!("{HEAD}[command]\nargv = [\"p\", \"--lr=${{params.lr}}\"]\n[params]\nlr = 0.1");
    let program = |set: &[(String, String)]| match job_file(&text, Path::new("/"), set).unwrap().work {
        Work::Command(command) => command.program,
        other => panic!("{other:?}"),
    };
    assert_eq!(program(&[]), Program::Argv(vec!["p".into(), "--lr=0.1".into()]));
    assert_eq!(program(&[("lr".into(), "0.2".into())]), Program::Argv(vec!["p".into(), "--lr=0.2".into()]));
    let error = job_file(&text, Path::new("/"), &[("nope".into(), "1".into())]).unwrap_err();
    assert_eq!((error.help.as_deref(), error.span), (Some("it has lr"), None));
}

#[test]
fn shipped_files_and_sources_are_relative_to_the_job_file() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    std::fs::create_dir(base.join("data")).unwrap();
    std::fs::write(base.join("data/map.py"), "").unwrap();
    let text = "name = \"j\"\n[dataset]\nsource = \"./data\"\n[command]\nargv = [\"x\"]\nfiles = [\"data/map.py\"]";
    let job = job_file(text, &base, &[]).unwrap();
    assert_eq!(job.dataset.source, format!("file://{}/data", base.display()));
    assert_eq!(job.dataset.name, "data");
    let Work::Command(command) = job.work else { panic!() };
    assert_eq!(command.files, BTreeMap::from([("map.py".to_owned(), format!("{}/data/map.py", base.display()))]));
    let (message, _) =
        problem(&text.replace("\"./data\"", "\"s3://b\"").replace("map.py\"", "map.py\", \"x/../map.py\""));
    assert!(message.starts_with("there is no file"), "{message}");
}

#[test]
fn several_sources_are_what_they_have_in_common_and_a_file_of_keys_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    std::fs::write(base.join("keys.txt"), "b\na\n").unwrap();
    let job =
        |dataset: &str| job_file(&format!("name = \"j\"\n[dataset]\n{dataset}\n[command]\nargv = [\"x\"]"), &base, &[]);
    let several = job("source = [\"s3://b/p/2014\", \"s3://b/p/2013/\"]").unwrap().dataset;
    assert_eq!((&*several.source, &*several.name), ("s3://b/p/", "p"));
    assert_eq!(several.stage_request().unwrap().options.prefixes, ["2013/", "2014/"]);

    let keys = job("source = \"s3://b/p\"\nkeys = \"keys.txt\"").unwrap();
    let text = serde_json::to_string(&keys).unwrap();
    assert_eq!(serde_json::from_str::<JobSpec>(&text).unwrap(), keys);
    assert!(keys.dataset.stage_request().unwrap().options.keys.is_some());
    std::fs::write(base.join("keys.txt"), "a\nb\nc\n").unwrap();
    let changed = keys.dataset.stage_request().unwrap_err().to_string();
    assert!(changed.contains("other keys than when the job was submitted"), "{changed}");

    for (dataset, message) in [
        ("source = []", "at least one source"),
        ("source = [\"s3://b/p\", \"s3://c/p\"]", "prefixes of one bucket"),
        ("source = \"s3://b/p\"\nkeys = \"absent.txt\"", "absent.txt"),
        ("source = [\"s3://b/p\", \"s3://b/q\"]\nkeys = \"keys.txt\"", "there are several"),
    ] {
        let error = job(dataset).unwrap_err();
        assert!(error.message.contains(message) && error.span.is_some(), "{dataset}: {error:?}");
    }
    let into = |to: &str| {
        let source = "name = \"j\"\n[dataset]\nsource = [\"s3://b/p/1\", \"s3://b/p/2\"]";
        job_file(&format!("{source}\n[sql]\nquery = \"select 1\"\n[output]\nto = \"{to}\""), &base, &[])
    };
    assert!(into("s3://b/p/1/out").unwrap_err().message.contains("own source"));
    assert!(into("s3://b/p/out").is_ok(), "beside the sources");
}

#[test]
fn a_resolved_job_survives_its_own_json() {
    for rest in [
        "[mapreduce]\nmap = \"grep a+\"\n[retry]\ntimeout = \"90s\"",
        "[mapreduce]\nmap = { native = \"sessions\" }",
        "[mapreduce]\nmap = [\"m\"]\nreduce = [\"r\"]\nenv = { A = \"1\" }",
        "anonymous = true\nversion = \"0a1b\"\n[command]\nshell = \"x\"\n[split]\nby = \"row-groups\"\ncount = 7",
        "columns = [\"a\"]\n[sql]\nquery = \"select 1\"",
        "columns = \"needed\"\n[sql]\nquery = \"select 1\"",
        "[sql]\nquery = \"select 1\"\nengine = \"splits\"\n[split]\nby = \"row-groups\"",
        "[sql]\nquery = \"select 1\"\n[output]\nformat = \"csv\"\nto = \"file:///out\"",
        "on_bad_record = \"skip\"\n[sql]\nquery = \"select 1\"\n[sql.tables]\na = \"*.csv\"\n\
         b = { include = [\"b\"], format = \"csv\", null = [\"NA\"], escape = \"x\", schema = { v = \"INT\" } }\n\
         [sql.options]\ndatafusion.execution.batch_size = 7\n[output]\npartition_by = [\"a\"]\nrow_group_size = \"1MiB\"",
    ] {
        let job = parse(rest).unwrap();
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<JobSpec>(&text).unwrap(), job);
    }
    let Work::Mapreduce(job) = parse("[mapreduce]\nmap = \"grep  a b \"").unwrap().work else { panic!() };
    assert_eq!(job.map, Mapper::Grep(" a b ".into()), "a pattern keeps its blanks");
}

#[test]
fn what_is_compiled_into_the_workers_is_called_for_by_its_name() {
    let job = parse("[mapreduce]\nmap = { native = \"sessions\" }\n[output]\nformat = \"csv\"").unwrap();
    assert_eq!((job.native(), job.can_yield()), (Some("sessions"), false));
    assert!(crate::plan::starts_early(&job), "it reads its own split and nothing else");
    for (map, message, place) in [
        ("{ native = \"a b\" }", "`a b` is no name", "\"a b\""),
        ("{ natve = \"a\" }", "unknown key `natve`", "natve"),
        ("{ native = \"a\" }\nreduce = [\"b\"]", "`a` brings its own reduce", "[\"b\"]"),
        ("{ native = \"a\" }\nenv = { X = \"y\" }", "`a` takes neither files nor env", "\"y\""),
        ("7", "expected the name of a built-in", "7"),
    ] {
        let (told, pointed) = problem(&format!("{HEAD}[mapreduce]\nmap = {map}\n"));
        assert!(told.contains(message), "{told}");
        assert_eq!(pointed, place, "{map}");
    }
}

#[test]
fn what_stands_for_no_value_is_of_some_kibibytes() {
    let with = |bytes: usize| {
        let null = ["x".repeat(bytes - 1), "y".to_owned()];
        format!("{HEAD}[sql]\nquery = \"select 1\"\ntables.a = {{ include = \"a.csv\", null = {null:?} }}")
    };
    let (message, place) = problem(&with((16 << 10) + 1));
    assert_eq!((&message[..], &place[..]), ("null takes 16384 bytes in all, and these are 16385", "\"y\""));
    parse(&with(16 << 10)[HEAD.len()..]).unwrap();
}
